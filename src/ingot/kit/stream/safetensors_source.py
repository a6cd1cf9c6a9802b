"""A source over the safetensors files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.safetensors_check import Entry, check_file
from ingot.kit.stream.verified import Buffers, Bytes, TensorHash, VerifiedFile, expectation
from ingot.kit.stream.vocabulary import ELEMENT_BYTES, TORCH_DTYPES, Block, Slot


class SafetensorsSource:
    """The tensors of a folder in the order of its files and of the bytes in them; every file is read once.

    The headers are checked when it is made (E-ST-*, E-NOT-HF, E-FORMAT-PICKLE). ``expected`` holds what each file must
    be: it is compared with what was read, in that same read. ``tensors``: the xxh3-128 of the tensors read so far.
    """

    def __init__(self, folder: Path, expected: Mapping[str, FileRecord] | None = None) -> None:
        self._parts: dict[Path, list[Entry]] = {path: [] for path in hf.tensor_files(folder)}
        for path, entry in hf.entries(folder):
            if entry.dtype not in ELEMENT_BYTES:
                raise RefusedInput("E-ST-DTYPE", f"{path.name}: no stage reads {entry.dtype} ({entry.name})")
            self._parts[path].append(entry)
        for path, entries in self._parts.items():
            # Tensors without bytes share their place with others: the header then says what comes first.
            listed = {entry.name: number for number, entry in enumerate(check_file(path))}
            entries.sort(key=lambda entry: (entry.begin, entry.end, listed[entry.name]))
        self._expected = {path: expectation(path, expected) for path in self._parts}
        self._slots = [Slot(e.name, e.shape, e.dtype) for entries in self._parts.values() for e in entries]
        self._hashes = TensorHash()

    @property
    def slots(self) -> Sequence[Slot]:
        """All tensors, in the order of their bytes."""
        return self._slots

    @property
    def tensors(self) -> Mapping[str, str]:
        """The xxh3-128 of each tensor's bytes, by name."""
        return self._hashes.digests

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``."""
        buffers, index = Buffers(), 0
        for path, entries in self._parts.items():
            with VerifiedFile(path, self._expected[path], buffers) as file:
                # What comes before the data was checked already, and counts in the hash like the rest.
                file.skip(file.size - (entries[-1].end if entries else 0))
                for _ in entries:
                    yield from self._cut(file, index, rows[index])
                    index += 1
                file.finish()

    def _cut(self, file: VerifiedFile, index: int, rows: int) -> Iterator[Block]:
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
