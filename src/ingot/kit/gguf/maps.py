"""The maps of tensors between Hugging Face and GGUF, on blocks of rows, and their inverses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ingot.kit.gguf.architectures.words import Map
from ingot.kit.stream.vocabulary import Route, Slot, unchanged


@dataclass(frozen=True)
class Rotary:
    """Rows of each head from two halves to neighbouring pairs, ``back``: from pairs to halves.

    transformers rotates row i of a head's first half with row i of its second; llama.cpp, for these architectures, rows
    2i and 2i + 1 (``permute`` in llama.cpp's converter). A block holds whole heads of ``head`` rows.
    """

    head: int
    back: bool

    def __call__(self, rows: torch.Tensor, _start: int) -> torch.Tensor:
        """Reorder the rows of the heads in this block."""
        halves = (self.head // 2, 2) if self.back else (2, self.head // 2)
        return rows.reshape(-1, *halves, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _plus_one(rows: torch.Tensor, _start: int) -> torch.Tensor:
    """The reference adds in float16 to what is stored so, in float32 to all else."""
    return (rows + 1 if rows.dtype == torch.float16 else rows.float() + 1).float()


def _minus_one(rows: torch.Tensor, _start: int) -> torch.Tensor:
    return rows.float() - 1


def _transposed(rows: torch.Tensor, _start: int) -> torch.Tensor:
    return rows.T.contiguous()


def route(slot: Slot, name: str, kind: Map, head: int, *, back: bool) -> Route:
    """The route of ``slot`` to the tensor ``name`` under a map of this kind, or under its inverse (``back``)."""
    target = Slot(name, slot.shape, slot.dtype)
    if kind == "rotary":
        way = "pairs-to-halves" if back else "halves-to-pairs"
        return Route(target, Rotary(head, back), grain=head, identity=f"rotary {way} of heads of {head} rows")
    if kind == "plus_one":
        norm = Slot(name, slot.shape, "F32")
        return Route(norm, _minus_one if back else _plus_one, identity="norm minus 1" if back else "norm plus 1")
    if kind == "transposed" and len(slot.shape) == 2:
        return Route(Slot(name, slot.shape[::-1], slot.dtype), _transposed, whole=True, identity="transposed")
    return Route(target, unchanged, identity="")
