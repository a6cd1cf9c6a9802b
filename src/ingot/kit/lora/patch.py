"""The arithmetic of a merge: what becomes of the rows of one weight.

Rows are taken in *tiles*, whose size follows from the shape alone and which start at multiples of it: the products that
make a row are the same whatever blocks it comes in, so the bytes are. A tile fits a core's cache in fp32; sums of
squares are taken there, before the one rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from ingot.kit.lora.read import Factors

_TILE = 1 << 18  # elements: 1 MiB of fp32
_F16_LARGEST = 65520.0  # what rounds to infinity in float16

#: Gives the fp32 values of rows [start, stop) that the change is added to, as a tensor of its own.
Base = Callable[[int, int], torch.Tensor]


def tile_rows(shape: tuple[int, ...]) -> int:
    """The rows of a tile: a power of two that follows from the shape alone."""
    width = math.prod(shape[1:])
    return 1 << max(0, (_TILE // max(1, width)).bit_length() - 1)


@dataclass
class Tally:
    """Sums of squares of a merge, exact whatever the order: each tile's fp32 sum, added with one rounding."""

    before: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, before: torch.Tensor, change: torch.Tensor) -> None:
        """Count a tile of what the adapter was trained on, and what it changes there."""
        squares = _square(before), _square(change)
        with self.lock:
            self.before.append(squares[0])
            self.change.append(squares[1])

    def add_error(self, given: torch.Tensor, trained_on: torch.Tensor) -> None:
        """Count a tile as it was given, and how far the round trip took it."""
        squares = _square(given), _square(trained_on - given)
        with self.lock:
            self.given.append(squares[0])
            self.error.append(squares[1])


def _square(tile: torch.Tensor) -> float:
    flat = tile.reshape(-1)
    return float(torch.dot(flat, flat))


def outside(tile: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether some value is not finite, or is not once it is of ``dtype``."""
    if tile.numel() == 0 or not tile.is_floating_point():
        return False
    limit = _F16_LARGEST if dtype is torch.float16 else math.inf
    low, high = torch.aminmax(tile)  # of anything with a NaN: NaN, which is on no side of a limit
    return not (float(low) > -limit and float(high) < limit)


@dataclass(frozen=True)
class Patch:
    """Rows that change: ``s·B·A`` of each adapter, and for DoRA the magnitudes that the sum is scaled to.

    ``flipped``: the weight is stored in × out (an embedding, a GPT-2 Conv1D), so the product is added transposed, and
    DoRA's norm, taken over ``in``, runs along the rows: the map must see the whole weight.
    """

    factors: tuple[Factors, ...]
    flipped: bool = False

    @property
    def magnitude(self) -> torch.Tensor | None:
        """DoRA's magnitudes, one an output."""
        return self.factors[0].magnitude

    @property
    def whole(self) -> bool:
        """Whether it needs all rows at once."""
        return self.flipped and self.magnitude is not None

    def changes(self) -> Callable[[int, int], torch.Tensor]:
        """The fp32 change of rows [start, stop). The right-hand factors are widened once, here."""
        rights = [_wide(item.up.T if self.flipped else item.down) for item in self.factors]

        def change(start: int, stop: int) -> torch.Tensor:
            total: torch.Tensor | None = None
            for item, right in zip(self.factors, rights, strict=True):
                left = _wide(item.down[:, start:stop].T if self.flipped else item.up[start:stop])
                part = (left @ right).mul_(item.scale)
                total = part if total is None else total.add_(part)
            assert total is not None
            return total

        return change

    def scaled(self, base: Base, span: range) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        """What DoRA makes of a tile of the sum ``W + s·B·A``; ``span`` are the starts of all tiles."""
        magnitude = self.magnitude
        if magnitude is None:
            return lambda tile, _start, _stop: tile
        wide = _wide(magnitude.reshape(-1))
        if not self.flipped:
            return lambda tile, start, stop: tile * (wide[start:stop] / torch.linalg.vector_norm(tile, dim=1))[:, None]
        change, squares = self.changes(), torch.zeros(wide.numel(), dtype=torch.float64)
        for start in span:
            stop = min(start + span.step, span.stop)
            squares += (base(start, stop) + change(start, stop)).double().square().sum(dim=0)
        factor = wide / squares.sqrt().float()
        return lambda tile, _start, _stop: tile * factor


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous fp32 copy: its address does not depend on where the file put it, and so neither do the products."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def tiles(start: int, rows: int, step: int) -> Iterator[tuple[int, int]]:
    """The bounds of the tiles of a block."""
    for first in range(start, start + rows, step):
        yield first, min(first + step, start + rows)
