"""A source over tensors in memory: small models in tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ingot.kit.stream.vocabulary import DTYPE_NAMES, Block, Slot


class MemorySource:
    """Named tensors, in the order given."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        self._slots = [Slot(name, tuple(t.shape), DTYPE_NAMES[t.dtype]) for name, t in self._tensors.items()]

    @property
    def slots(self) -> Sequence[Slot]:
        """All tensors."""
        return self._slots

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``."""
        for index, tensor in enumerate(self._tensors.values()):
            slot = self._slots[index]
            for start in range(0, slot.rows or 1, rows[index]):
                yield Block(index, start, tensor[start : start + rows[index]] if slot.shape else tensor)
