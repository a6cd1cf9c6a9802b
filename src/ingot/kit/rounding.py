"""Round-to-nearest int8 weights as they flow by, compared with what they were rounded from."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from ingot.errors import StageFailed
from ingot.kit import compressed
from ingot.kit.stream.vocabulary import MapRows, Route, Slot, unchanged


@dataclass
class Sums:
    """What the comparison adds up, in parts of which each is the same whatever the order they come in."""

    worst: float = 0.0
    _parts: dict[tuple[str, int], tuple[int, float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, part: tuple[str, int], before: torch.Tensor, after: torch.Tensor, scale: torch.Tensor) -> None:
        """Add some rows. StageFailed (E-QUANTIZE-VERIFY) when a weight is off by more than rounding explains.

        The bound: half a step for the integer, and half a unit in the last place of the dtype for the product
        ``q·s``, of which ``|q| ≤ 127`` (for bfloat16 up to another quarter of a step).
        """
        step = scale.float().repeat_interleave(before.shape[1] // scale.shape[1], dim=1)
        off = (before.float() - after.float()).abs()
        bound = step * (0.5 + 127 * torch.finfo(after.dtype).eps / 2) * 1.001
        if before.shape != after.shape or not bool((off <= bound).all()):
            raise StageFailed(
                "E-QUANTIZE-VERIFY",
                f"{part[0]!r} reads back further from its weights than rounding explains",
                facts=[f"largest error {float((off / step).max()):.3f} steps"],
            )
        error, weight = float(off.double().square().sum()), float(before.double().square().sum())
        with self._lock:
            self.worst = max(self.worst, float((off / step).max()))
            self._parts[part] = before.numel(), error, weight

    @property
    def layers(self) -> int:
        """How many weights were rounded."""
        return len({name for name, _ in self._parts})

    @property
    def parameters(self) -> int:
        """Elements of these weights."""
        return sum(count for count, _, _ in self._parts.values())

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the error over that of these weights."""
        weight = math.fsum(part[2] for part in self._parts.values())
        return math.sqrt(math.fsum(part[1] for part in self._parts.values()) / weight) if weight else 0.0


@dataclass
class Rounding:
    """Makes of each weight (rows × columns) named in ``chosen`` what stands for it in the format; others pass.

    What was packed is decoded by the format's own library and compared with the weights: StageFailed
    (E-QUANTIZE-VERIFY) when one is off by more than rounding explains.
    """

    chosen: Collection[str]
    group_size: int | None
    sums: Sums = field(default_factory=Sums)

    def __post_init__(self) -> None:
        self._decode = compressed.decoder(self.group_size)

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        if slot.name not in self.chosen:
            return [Route(slot, unchanged, identity="")]
        rows, columns = slot.shape
        groups = 1 if self.group_size is None else columns // self.group_size
        shape = torch.tensor(slot.shape, dtype=torch.int64)
        identity = f"W8A16 {self.group_size}"
        return [
            Route(Slot(f"{slot.name}_packed", (rows, -(-columns // 4)), "I32"), self._packed(slot), identity=identity),
            Route(Slot(f"{slot.name}_scale", (rows, groups), slot.dtype), self._scale(), identity=identity),
            Route(Slot(f"{slot.name}_shape", (2,), "I64"), lambda _rows, _start: shape, once=True),
        ]

    def finish(self) -> None:
        """See ``Transform``."""

    def _scale(self) -> MapRows:
        return lambda rows, _start: compressed.scales_of(rows, self.group_size)

    def _packed(self, slot: Slot) -> MapRows:
        def pack(rows: torch.Tensor, start: int) -> torch.Tensor:
            scale = compressed.scales_of(rows, self.group_size)
            packed = compressed.pack(compressed.quantize(rows, scale, self.group_size))
            self.sums.add((slot.name, start), rows, self._decode(packed, scale, rows.shape), scale)
            return packed

        return pack
