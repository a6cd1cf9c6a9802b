"""What the sources over files have in common: slots, the digests of what was read, blocks cut in the order of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ingot.kit.stream.verified import Bytes, TensorHash, VerifiedFile
from ingot.kit.stream.vocabulary import TORCH_DTYPES, Block, Slot


class FileSource:
    """Tensors that lie in files as bytes of their dtype; each tensor's bytes are hashed as they are read."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._hashes = TensorHash()

    @property
    def slots(self) -> Sequence[Slot]:
        """All tensors, in the order of their bytes."""
        return self._slots

    @property
    def tensors(self) -> Mapping[str, str]:
        """The xxh3-128 of each tensor's bytes in the files, by name, as far as they were read."""
        return self._hashes.digests

    def _cut(self, file: VerifiedFile, index: int, rows: int) -> Iterator[Block]:
        """The tensor that begins where the file was read up to, in blocks of ``rows`` rows."""
        slot = self._slots[index]
        # A tensor without rows, like one whose rows are empty, is one block.
        for start in range(0, slot.rows or 1, rows):
            count = min(rows, slot.rows - start)
            piece = file.take(slot.nbytes // (slot.rows or 1) * count)
            self._hashes.update(slot.name, piece, last=start + count >= slot.rows)
            shape = (count, *slot.shape[1:]) if slot.shape else ()
            yield Block(index, start, _tensor(piece, slot.dtype).view(shape))


def _tensor(piece: Bytes, dtype: str) -> torch.Tensor:
    # torch cannot view no bytes as another dtype.
    return (
        torch.from_numpy(piece).view(TORCH_DTYPES[dtype]) if piece.size else torch.empty(0, dtype=TORCH_DTYPES[dtype])
    )
