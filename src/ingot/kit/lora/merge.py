"""The merge as a transform of the streaming path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

import torch

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.errors import RefusedInput
from ingot.kit.lora.combine import Change
from ingot.kit.lora.nf4 import RoundTrip
from ingot.kit.lora.patch import Base, Patch, Tally, outside, tile_rows, tiles
from ingot.kit.lora.place import Places, find_places
from ingot.kit.stream.vocabulary import TORCH_DTYPES, MapRows, Route, Slot, unchanged

#: Raised when the same adapter and weight give other bytes: part of each route's identity.
ARITHMETIC = 2

_DTYPES = {name: TORCH_DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}


@dataclass(frozen=True)
class Options:
    """How the merge is done. ``dtype`` is safetensors' name; None keeps each weight's own.

    ``quantized`` names the weights that the adapter's training had quantized, ``trip`` does to them what was done.
    """

    dtype: str | None = None
    allow_nonfinite: bool = False
    conv1d: bool = False
    trip: RoundTrip | None = None
    quantized: frozenset[str] = frozenset()


@dataclass
class LoraMerge:
    """Adds a change to the weights that pass, and counts what it does. One object serves one run.

    A tied model whose embedding is touched gets a ``lm_head.weight`` of its own, right after it: the adapter changed
    what one of the two reads, not both.
    """

    change: Change
    options: Options = field(default_factory=Options)
    tally: Tally = field(default_factory=Tally)
    _places: Places | None = None
    _adapted: dict[str, bool] = field(default_factory=dict)
    _hashes: dict[tuple[Any, ...], tuple[torch.Tensor, str]] = field(default_factory=dict)

    def begin(self, slots: Sequence[Slot]) -> None:
        """Find the place of every change. RefusedInput: E-MERGE-UNMATCHED, E-MERGE-SHAPE, E-MERGE-METHOD."""
        self._places = find_places(self.change, slots, conv1d=self.options.conv1d)
        self._adapted.clear()
        known = {slot.name for slot in slots}
        lost = sorted(self.options.quantized - known)
        if lost:
            raise RefusedInput("E-MERGE-UNMATCHED", f"the base has no {lost[0]!r}, which training had quantized")

    @property
    def apart(self) -> bool:
        """Whether input and output embedding are not tied for what the merge did. After ``begin``."""
        return bool(self._places and self._places.apart)

    @property
    def merged(self) -> int:
        """How many weights an adapter changes."""
        return sum(self._adapted.values())

    def routes(self, slot: Slot) -> Sequence[Route]:
        """The merged weight; after a tied embedding that is tied no longer, the other one as well."""
        assert self._places is not None
        names = [slot.name, *self._places.copies.get(slot.name, ())]
        return [self._route(slot, name) for name in names]

    def finish(self) -> None:
        """Nothing shows at the end that did not show before."""

    def _route(self, slot: Slot, name: str) -> Route:
        assert self._places is not None
        dtype = self.options.dtype if self.options.dtype and slot.dtype in _DTYPES else slot.dtype
        made = Slot(name, slot.shape, dtype)
        work = Work(self, made, slot)
        self._adapted[name] = work.adapted
        if work.touched and dtype not in _DTYPES:
            raise RefusedInput("E-DTYPE", f"an adapter cannot be added to {name!r}, whose weights are {dtype}")
        if not work.touched:
            identity = "" if dtype == slot.dtype else f"cast {slot.dtype} {dtype}"
            same = dtype == slot.dtype
            return Route(made, unchanged if same else _cast(made, check=self._checks), identity=identity)
        return Route(made, work.map, work.step, work.whole, work.identity())

    def content(self, tensor: torch.Tensor) -> str:
        """SHA-256 of a tensor's dtype, shape and bytes; of each once, as routes are asked for more than once."""
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        # held, so that no other tensor can lie there
        known = self._hashes.get(key) or self._hashes.setdefault(key, (tensor, _content(tensor)))
        return known[1]

    @property
    def _checks(self) -> bool:
        return not self.options.allow_nonfinite

    def relative_change(self) -> float | None:
        """Frobenius norm of the change over that of the adapted weights; None when nothing was adapted."""
        weights = fsum(self.tally.before)
        return math.sqrt(fsum(self.tally.change) / weights) if weights > 0 else None

    def change_norm(self) -> float:
        """Frobenius norm of the change."""
        return math.sqrt(fsum(self.tally.change))

    def quantization_change(self) -> float | None:
        """Frobenius norm of the round trip's error over that of the quantized weights; None without one."""
        weights = fsum(self.tally.given)
        return math.sqrt(fsum(self.tally.error) / weights) if weights > 0 else None


def _cast(made: Slot, *, check: bool) -> MapRows:
    """The map of a weight that no adapter touches, written in another dtype."""
    dtype = _DTYPES[made.dtype]

    def cast(rows: torch.Tensor, start: int) -> torch.Tensor:
        if check:
            refuse_outside(rows, dtype, made.name, start)
        return rows.to(dtype)

    return cast


def refuse_outside(tile: torch.Tensor, dtype: torch.dtype, name: str, start: int) -> None:
    """Refuse values that are no numbers (E-NONFINITE) or that ``dtype`` cannot hold (E-DTYPE-RANGE)."""
    if not outside(tile, dtype):
        return
    wide = torch.isfinite(tile)
    good = (wide if not bool(wide.all()) else torch.isfinite(tile.to(dtype))).reshape(tile.shape[0] or 1, -1)
    row = start + int((~good.all(dim=1)).nonzero()[0])
    if not bool(wide.all()):
        raise RefusedInput(
            "E-NONFINITE",
            f"the merged weight {name!r} holds values that are not finite",
            facts=[f"the first in row {row}"],
            hint="the training of the adapter went wrong; 'allow_nonfinite: true' takes it as it is",
        )
    raise RefusedInput(
        "E-DTYPE-RANGE",
        f"the merged weight {name!r} holds values beyond what {str(dtype).removeprefix('torch.')} can hold",
        facts=[f"largest absolute value: {float(tile.abs().max()):g}, in a block from row {start}"],
        hint="use dtype: bfloat16",
    )


class Work:
    """What becomes of one written weight."""

    def __init__(self, merge: LoraMerge, made: Slot, given: Slot) -> None:
        assert merge._places is not None  # noqa: SLF001 - a part of the merge
        self.merge, self.made, self.given = merge, made, given
        place = merge._places.at(made.name)  # noqa: SLF001 - as above
        self.patch: Patch | None = place.patch
        self.replaced, self.tokens, self.biases = place.replaced, place.tokens, place.biases
        trained_over = given.name == made.name and made.name in merge.options.quantized and self.replaced is None
        self.trip = merge.options.trip if trained_over else None
        self.step = tile_rows(made.shape)
        self.adapted = bool(self.patch or self.biases or self.tokens) or self.replaced is not None
        self.touched = self.adapted or self.trip is not None

    @property
    def whole(self) -> bool:
        """Whether the map must see all rows: a norm along them, or a mean over the largest values of all blocks."""
        return bool(self.trip or (self.patch and self.patch.whole))

    def map(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        """The merged rows: fp32 sums, one rounding."""
        dtype = _DTYPES[self.made.dtype]
        result = torch.empty(rows.shape, dtype=dtype)
        base, tally = self._base(rows, start), self.merge.tally
        change = self._change()
        scaled = self._scaled(base, rows.shape[0])
        for first, last in tiles(start, rows.shape[0], self.step):
            before = base(first, last)
            after = scaled(change(before, first, last), first, last)
            if self.adapted:
                tally.add(before, after - before)
            if self.trip:
                tally.add_error(rows[first - start : last - start].float(), before)
            if not self.merge.options.allow_nonfinite:
                refuse_outside(after, dtype, self.made.name, first)
            result[first - start : last - start] = after
        return result

    def _base(self, rows: torch.Tensor, start: int) -> Base:
        """What the change is added to: the weight as given, or after the round trip of its training."""
        if self.trip:
            return self.trip.reader(rows)
        return lambda first, last: rows[first - start : last - start].to(torch.float32, copy=True)

    def _change(self) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        """The sum of a tile and all that is added to it or put in its place."""
        patch = self.patch.changes() if self.patch else None

        def change(before: torch.Tensor, first: int, last: int) -> torch.Tensor:
            after = before if self.replaced is None else self.replaced[first:last].float()
            if self.tokens:
                after = _with_tokens(after, self.tokens, first, last)
            if patch:
                after = after + patch(first, last)
            for bias, scale in self.biases:
                after = after + bias[first:last].float() * scale
            return after

        return change

    def _scaled(self, base: Base, rows: int) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        if self.patch is None:
            return lambda tile, _first, _last: tile
        return self.patch.scaled(self._started(base), range(0, rows, self.step))

    def _started(self, base: Base) -> Base:
        if self.replaced is None:
            return base
        other = self.replaced
        return lambda first, last: other[first:last].float()

    def identity(self) -> str:
        """A hash of all that decides the map."""
        content = self.merge.content
        parts: dict[str, object] = {
            "arithmetic": ARITHMETIC, "torch": torch.__version__, "from": self.given.dtype, "dtype": self.made.dtype,
            "biases": [[content(bias), scale] for bias, scale in self.biases],
            "replaced": None if self.replaced is None else content(self.replaced),
            "tokens": None if not self.tokens else [list(self.tokens[0]), content(self.tokens[1])],
            "quantization": self.trip.identity if self.trip else None,
        }  # fmt: skip
        if self.patch:
            parts["flipped"] = self.patch.flipped
            parts["factors"] = [
                [content(item.down), content(item.up), item.scale, item.embedding,
                 None if item.magnitude is None else content(item.magnitude)] for item in self.patch.factors
            ]  # fmt: skip
        return "lora " + sha256_bytes(canonical_json(parts))


def _with_tokens(
    tile: torch.Tensor, tokens: tuple[tuple[int, ...], torch.Tensor], first: int, last: int
) -> torch.Tensor:
    indices, rows = tokens
    here = [number for number, index in enumerate(indices) if first <= index < last]
    if not here:
        return tile
    after = tile.clone()
    after[[indices[number] - first for number in here]] = rows[here].float()
    return after


def _content(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    stated = canonical_json([str(tensor.dtype), list(tensor.shape)])
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return sha256_bytes(stated + sha256_bytes(memoryview(flat.numpy())).encode())
