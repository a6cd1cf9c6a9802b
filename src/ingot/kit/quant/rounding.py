"""Weights rounded to nearest as they flow by, compared with what they were rounded from."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import xxhash

from ingot.errors import StageFailed
from ingot.kit.hf import torch_dtype
from ingot.kit.quant import numbers
from ingot.kit.quant.library import Decoder
from ingot.kit.quant.scheme import CAST_DTYPES, CASTS, Scheme
from ingot.kit.stream.cast import Cast
from ingot.kit.stream.vocabulary import DTYPE_NAMES, TORCH_DTYPES, MapRows, Route, Slot, unchanged

#: Scales and zero points of a weight that were found before it flows.
Known = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Part:
    """What the comparison of some rows gave: their scheme, elements, squared error, squared size, error in steps."""

    scheme: str
    count: int
    error: float
    weight: float
    steps: float | None


@dataclass
class Sums:
    """What the comparison adds up, in parts of which each is the same whatever the order they come in."""

    _parts: dict[tuple[str, int], Part] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, where: tuple[str, int], part: Part) -> None:
        """Add some rows of a tensor."""
        with self._lock:
            self._parts[where] = part

    def of(self, scheme: str | None = None) -> dict[str, list[Part]]:
        """The parts of each tensor, of one scheme or of all."""
        found: dict[str, list[Part]] = {}
        for (name, _), part in sorted(self._parts.items()):
            if scheme in {None, part.scheme}:
                found.setdefault(name, []).append(part)
        return found

    def relative_error(self, scheme: str | None = None) -> float:
        """Frobenius norm of the error over that of these weights."""
        parts = [part for some in self.of(scheme).values() for part in some]
        weight = math.fsum(part.weight for part in parts)
        return math.sqrt(math.fsum(part.error for part in parts) / weight) if weight else 0.0

    @property
    def worst(self) -> float | None:
        """The largest error in steps of its scale, None where nothing has steps."""
        steps = [part.steps for part in self._parts.values() if part.steps is not None]
        return max(steps, default=None)


@dataclass
class Seen:
    """What was decoded on the way, to be compared with what lies in the files: hashes; with ``whole`` the weights."""

    whole: bool = False
    hashes: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    rows: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, start: int, decoded: torch.Tensor) -> None:
        """Some rows of a weight."""
        digest = digest_of(decoded)
        with self._lock:
            self.hashes[name, start] = decoded.shape[0], digest
            if self.whole:
                self.rows[name, start] = decoded

    def weight(self, name: str) -> torch.Tensor:
        """A whole weight."""
        return torch.cat([self.rows[name, start] for start in self.of(name)])

    def of(self, name: str) -> dict[int, tuple[int, str]]:
        """The rows of a weight, by the first: how many, and their hash."""
        return {start: rows for (found, start), rows in sorted(self.hashes.items()) if found == name}


def digest_of(tensor: torch.Tensor) -> str:
    """xxh3-128 of the bytes of a tensor."""
    return xxhash.xxh3_128(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())).hexdigest()


@dataclass
class Rounding:
    """Makes of each weight (rows × columns) of a chosen module what stands for it in its scheme's format; others pass.

    ``dtype``: what all else is rounded to, and the scales have; None leaves both as they come. ``known`` holds scales
    that were found before. ``apart`` names the tensor that an embedding is written a second time as. What was packed
    is decoded by the format's own library and compared with the weights: StageFailed (E-QUANTIZE-VERIFY) when one is
    off by more than rounding explains.
    """

    schemes: Mapping[str, Scheme]
    dtype: torch.dtype | None = None
    known: Mapping[str, Known] = field(default_factory=dict)
    apart: tuple[str, str] | None = None
    sums: Sums = field(default_factory=Sums)
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        used = {scheme for scheme in self.schemes.values() if scheme.name not in CASTS}
        self._decoders = {scheme: Decoder(scheme) for scheme in used}
        self._last = threading.local()

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def finish(self) -> None:
        """See ``Transform``."""

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        found = self._routes(slot)
        if self.apart is not None and slot.name == self.apart[0]:
            found += self._routes(replace(slot, name=self.apart[1]))
        return found

    def _routes(self, slot: Slot) -> list[Route]:
        scheme = self.schemes.get(slot.name.removesuffix(".weight")) if slot.name.endswith(".weight") else None
        if scheme is None or scheme.name in CASTS:
            dtype = self.dtype if scheme is None else torch_dtype(CAST_DTYPES[scheme.name])
            return [self._cast(slot, dtype, scheme)]
        return self._packed(slot, scheme) if scheme.packed else self._bytes(slot, scheme)

    def _cast(self, slot: Slot, dtype: torch.dtype | None, scheme: Scheme | None) -> Route:
        if dtype is None or dtype == TORCH_DTYPES[slot.dtype]:
            return Route(slot, unchanged, identity="")
        route = Cast(dtype).routes(slot)[0]
        name = scheme.name if scheme is not None else {value: key for key, value in CAST_DTYPES.items()}[str(dtype)[6:]]

        def cast(rows: torch.Tensor, start: int) -> torch.Tensor:
            after = route.apply(rows, start)
            off = (rows.float() - after.float()).double().square().sum()
            self.sums.add((slot.name, start), Part(name, rows.numel(), float(off), _squares(rows), None))
            return after

        return replace(route, apply=cast) if route.slot.dtype != slot.dtype else route

    def _packed(self, slot: Slot, scheme: Scheme) -> list[Route]:
        rows, columns = slot.shape
        groups = 1 if scheme.group_size is None else columns // scheme.group_size
        shape = torch.tensor(slot.shape, dtype=torch.int64)
        identity, words = f"quantize {scheme}", -(-columns * scheme.bits // 32)
        found = [
            Route(Slot(f"{slot.name}_packed", (rows, words), "I32"), self._words(slot, scheme), identity=identity),
            Route(
                Slot(f"{slot.name}_scale", (rows, groups), self._scale_dtype(slot)),
                self._scale(slot, scheme),
                identity=identity,
            ),
            Route(Slot(f"{slot.name}_shape", (2,), "I64"), lambda _rows, _start: shape, once=True),
        ]
        if not scheme.symmetric:
            high = -(-rows * scheme.bits // 32)
            zero = Slot(f"{slot.name}_zero_point", (high, groups), "I32")
            found.append(Route(zero, self._zero(slot, scheme), whole=True, identity=identity))
        return found

    def _bytes(self, slot: Slot, scheme: Scheme) -> list[Route]:
        kind, identity = "F8_E4M3" if scheme.floating else "I8", f"quantize {scheme}"
        shape = (slot.shape[0], 1 if scheme.group_size is None else slot.shape[1] // scheme.group_size)
        scale = Slot(f"{slot.name}_scale", shape, self._scale_dtype(slot))
        found = [
            Route(replace(slot, dtype=kind), self._words(slot, scheme), identity=identity),
            Route(scale, self._scale(slot, scheme), identity=identity),
        ]
        if not scheme.symmetric:
            zero = Slot(f"{slot.name}_zero_point", shape, "I8")
            found.append(Route(zero, self._zero(slot, scheme), identity=identity))
        return found

    def _scale_dtype(self, slot: Slot) -> str:
        return slot.dtype if self.dtype is None else DTYPE_NAMES[self.dtype]

    def _made(self, slot: Slot, scheme: Scheme, rows: torch.Tensor, start: int) -> numbers.Rounded:
        """What some rows become; the routes of a weight ask for it one after another, on one thread."""
        where = slot.name, start, rows.shape[0]
        if getattr(self._last, "where", None) != where:
            known = self.known.get(slot.name.removesuffix(".weight"))
            part = None if known is None else (_cut(known[0], start, rows), _cut(known[1], start, rows))
            dtype = TORCH_DTYPES[self._scale_dtype(slot)]
            self._last.made = numbers.rounded(rows, scheme, dtype, part)
            self._last.where = where
        made: numbers.Rounded = self._last.made
        return made

    def _scale(self, slot: Slot, scheme: Scheme) -> MapRows:
        return lambda rows, start: self._made(slot, scheme, rows, start).scale

    def _zero(self, slot: Slot, scheme: Scheme) -> MapRows:
        def zero(rows: torch.Tensor, start: int) -> torch.Tensor:
            made = self._made(slot, scheme, rows, start)
            assert made.zero is not None
            return numbers.pack_zeros(made.zero, scheme.bits) if scheme.packed else made.zero

        return zero

    def _words(self, slot: Slot, scheme: Scheme) -> MapRows:
        def words(rows: torch.Tensor, start: int) -> torch.Tensor:
            made = self._made(slot, scheme, rows, start)
            parts = {"weight_scale": made.scale}
            if scheme.packed:
                written = parts["weight_packed"] = numbers.pack(made.values, scheme.bits)
                parts["weight_shape"] = torch.tensor(rows.shape)
            else:
                written = parts["weight"] = made.values
            if made.zero is not None:
                packed = scheme.packed
                parts["weight_zero_point"] = numbers.pack_zeros(made.zero, scheme.bits) if packed else made.zero
            decoded = self._decoders[scheme](parts)
            self._compare(slot.name, start, scheme, (rows, decoded, made.scale))
            self.seen.add(slot.name, start, decoded)
            return written

        return words

    def _compare(
        self, name: str, start: int, scheme: Scheme, found: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> None:
        before, after, scale = found
        off = (before.float() - after.float()).abs()
        step = numbers.spread(scale, before.shape[1])
        eps = torch.finfo(after.dtype).eps
        known = name.removesuffix(".weight") in self.known  # such weights lie on the grid of their scales already
        bound = before.float().abs() * (2 * eps) if known else numbers.most_off(before, scale, scheme, eps)
        if before.shape != after.shape or not bool((off <= bound).all()):
            raise StageFailed(
                "E-QUANTIZE-VERIFY",
                f"{name!r} reads back further from its weights than rounding explains",
                facts=[f"{scheme}: largest error {float((off / step).max()):.3f} steps"],
            )
        steps = None if scheme.floating else float((off / step).max())
        error = float(off.double().square().sum())
        if not known:
            self.sums.add((name, start), Part(scheme.name, before.numel(), error, _squares(before), steps))


def _squares(rows: torch.Tensor) -> float:
    return float(rows.double().square().sum())


def _cut(whole: torch.Tensor | None, start: int, rows: torch.Tensor) -> torch.Tensor | None:
    return None if whole is None else whole[start : start + rows.shape[0]]
