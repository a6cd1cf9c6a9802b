"""A chain put together: for each tensor of the source, what is done to its blocks and how high they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit.stream.vocabulary import (
    TORCH_DTYPES,
    Block,
    Route,
    Sink,
    Slot,
    Tap,
    Transform,
    Weights,
    unchanged,
)

#: Elements of a tile, and its most rows: some MiB, so that a block fits a cache and a pipeline has many.
TILE_ELEMENTS, TILE_ROWS = 2 << 20, 1024

#: What a worker hands to the writer: which sink gets which block, in which form.
Written = tuple[Sink, Block, Any]


def tile_rows(slot: Slot, grain: int = 1) -> int:
    """The height of a tile: a power of two that follows from the shape, made a multiple of ``grain``.

    Powers of two, so that the tiles of all routes divide one another for nearly every grain there is.
    """
    width = slot.elements // slot.rows if slot.rows else 0
    most = TILE_ELEMENTS if len(slot.shape) < 2 else TILE_ROWS
    rows = 1 << max(0, min(most, TILE_ELEMENTS // max(1, width)).bit_length() - 1)
    return max(grain, rows - rows % grain)


@dataclass
class Step:
    """One tensor at one place of the chain: who sees it there, and what becomes of it."""

    slot: Slot
    index: int
    sinks: list[Sink] = field(default_factory=list)
    routes: list[tuple[Route, Step]] = field(default_factory=list)

    @property
    def leaf_bytes(self) -> int:
        """The bytes of all tensors that this one ends as."""
        return sum(below.leaf_bytes for _, below in self.routes) if self.routes else self.slot.nbytes

    def whole(self) -> bool:
        """Whether a map on the way must see the tensor in one block."""
        return any(route.whole or below.whole() for route, below in self.routes)

    def grain(self) -> int:
        """The height that every block is a multiple of."""
        parts = [sink.grain(self.slot) for sink in self.sinks]
        for route, below in ((route, below) for route, below in self.routes if not route.once):
            parts += [below.grain(), route.grain if route.apply is unchanged else tile_rows(self.slot, route.grain)]
        return math.lcm(*parts) if parts else 1

    def block_rows(self) -> int:
        """How many rows a block has: as many as all tiles have, or the whole tensor."""
        most = max(1, self.slot.rows)
        return most if self.whole() else min(most, math.lcm(tile_rows(self.slot), self.grain()))

    def run(self, rows: torch.Tensor, start: int, out: list[Written]) -> None:
        """Map one block and encode it for every sink on the way."""
        for sink in self.sinks:
            block = Block(self.index, start, rows)
            out.append((sink, block, sink.encode(block)))
        for route, below in self.routes:
            if not (route.once and start):
                below.run(_mapped(self.slot, route, rows, start), start, out)


def _mapped(slot: Slot, route: Route, rows: torch.Tensor, start: int) -> torch.Tensor:
    """The rows of ``route``: a map that is not whole is given tile by tile, whatever the block is."""
    tile = tile_rows(slot, route.grain)
    count = rows.shape[0] if slot.shape else 1
    if route.whole or route.once or route.apply is unchanged or count <= tile:
        mapped = route.apply(rows, start)
    else:
        parts = [route.apply(rows[at : at + tile], start + at) for at in range(0, count, tile)]
        mapped = torch.cat(parts)
    goal = route.slot
    shape = (goal.rows if route.whole or route.once else count, *goal.shape[1:]) if goal.shape else ()
    if mapped.dtype != TORCH_DTYPES[goal.dtype] or tuple(mapped.shape) != shape:
        raise TypeError(f"{goal.name}: announced {goal.dtype} {goal.shape}, got {mapped.dtype} {tuple(mapped.shape)}")
    return mapped


def compose(weights: Weights, sinks: Sequence[Sink]) -> list[Step]:
    """The steps of each tensor of the source. Tells transforms and sinks what will come."""
    steps = roots = [Step(slot, index) for index, slot in enumerate(weights.source.slots)]
    for link in (*weights.chain, *(Tap(sink) for sink in sinks)):
        _refuse_twins(steps)
        if isinstance(link, Tap):
            link.sink.begin([step.slot for step in steps])
            for step in steps:
                step.sinks.append(link.sink)
        else:
            steps = _through(link, steps)
    return roots


def slots(weights: Weights) -> list[Slot]:
    """The tensors that come out at the end of a chain."""
    steps = [Step(slot, index) for index, slot in enumerate(weights.source.slots)]
    for link in weights.chain:
        if not isinstance(link, Tap):
            steps = _through(link, steps)
    return [step.slot for step in steps]


@dataclass(frozen=True)
class Origin:
    """Where a tensor at the end of a chain comes from: the source's slot, and what each transform says it does."""

    source: Slot
    identities: tuple[str | None, ...] = ()


def origins(weights: Weights) -> list[Origin]:
    """The origins of the tensors that come out at the end of a chain, in the order of ``slots``."""
    steps = [Step(slot, index) for index, slot in enumerate(weights.source.slots)]
    found = [Origin(step.slot) for step in steps]
    for link in weights.chain:
        if not isinstance(link, Tap):
            after = _through(link, steps)
            found = [
                Origin(origin.source, (*origin.identities, route.identity))
                for origin, step in zip(found, steps, strict=True)
                for route, _ in step.routes
            ]
            steps = after
    return found


def _through(transform: Transform, steps: Sequence[Step]) -> list[Step]:
    transform.begin([step.slot for step in steps])
    after: list[Step] = []
    for step in steps:
        for route in transform.routes(step.slot):
            step.routes.append((route, Step(route.slot, len(after))))
            after.append(step.routes[-1][1])
    return after


def _refuse_twins(steps: Sequence[Step]) -> None:
    seen: set[str] = set()
    for step in steps:
        if step.slot.name in seen:
            raise RefusedInput("E-ST-INDEX", f"tensor {step.slot.name!r} was given twice")
        seen.add(step.slot.name)
