"""What a target will take, by what past builds took: seconds, memory, bytes. Never a number without a build behind it.

That law is of predictions. What a target that never ran needs *at the least* follows from arithmetic on its parameters,
is called a floor, and is kept apart (``floors``): it is no guess at what a build will take.

The estimator. Of the builds that the logs hold, those most like the target are taken: with the same parameters, else
of the same target, else with the same parameters but for numbers, else of the same kind. Of these, the nearest by size
of input (at most five; of equals the newest) are scaled to the size of the target's input, and their median is the
prediction:

- where they are of one size, everything is proportional to the size of the input;
- where they differ in size, a line is laid through them (Theil and Sen: the median of slopes), kept between "as it was"
  and "proportional", which bound whatever has a fixed and a growing part.

The input of a target that waits, or is virtual and was never measured, is itself predicted. Where the size of an input
is not known there is no prediction. What one pass took counts in equal parts for each of its targets (``past``), so
that they add up to the pass when they are built in one again; one of them alone is predicted too low, until it was
built so.

Where it fails: work set by a parameter (``steps`` ten times as many, at first), builds of another machine, programs of
the ``command`` kind that do something else under the same name, and memory that does not grow with the input (it is
overestimated until builds of two sizes are known). What streams weights (``Stage.windowed``) is known not to grow by
more than its window, so no more than that is added to what it took. A kind that writes content of any form (``fetch``,
``command``) says nothing of other targets of that kind: there the kind alone is no likeness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import Any, Literal

from ingot.core.graph import Node, input_ids
from ingot.core.key import key_parts
from ingot.core.past import History, Past, fingerprints
from ingot.core.plan import Planned
from ingot.core.sources import SourceReader
from ingot.errors import RefusedInput

#: How the builds are like the target, the best first.
Basis = Literal["same_parameters", "same_target", "same_shape", "same_kind"]

_NEAREST = 5
#: What a window over weights, with the largest tensor, may take beyond what it took of a small model.
_WINDOW = 1 << 30
#: Sizes that differ by less are one size: a line through them would be a line through noise.
_APART = 1.25


@dataclass(frozen=True)
class Prediction:
    """What a target will take, from ``n`` builds; None for what none of them measured (sizes always are).

    ``bytes`` is the size of the artifact, ``scratch_bytes`` what lies beside it in staging while it is built.
    """

    wall_s: float | None
    peak_anon_bytes: int | None
    bytes: int
    scratch_bytes: int | None
    n: int
    basis: Basis

    def to_dict(self) -> dict[str, Any]:
        """As receipts and ``--json`` hold it."""
        return asdict(self)

    def source_text(self) -> str:
        """Where it comes from, in words."""
        return source_text(self.n, self.basis)


_WORDS: Mapping[str, str] = {
    "same_parameters": "with the same parameters",
    "same_target": "of the same target",
    "same_shape": "with parameters that differ in numbers only",
    "same_kind": "of the same kind",
}


def source_text(n: int, basis: str) -> str:
    """Where a prediction comes from: ``3 builds with the same parameters``."""
    return f"{n} build{'s' * (n != 1)} {_WORDS.get(basis, basis)}"


class Predictor:
    """Predicts targets by one history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._kinds: dict[str, _OfKind] = {}

    def of(self, node: Node, size: int) -> Prediction | None:
        """What a target with ``size`` bytes of input will take; None when no build is like it."""
        if node.kind not in self._kinds:
            self._kinds[node.kind] = _OfKind(list(self._history.of_kind(node.kind)))
        basis, found = self._kinds[node.kind].like(node)
        if basis is None:
            return None
        nearest = sorted(found, key=lambda item: (_distance(item[1].input_bytes, size), item[0] != node.id))[:_NEAREST]
        builds = [past for _target, past in nearest]
        wall, anon, written, scratch = (
            _scaled([(past.input_bytes, getattr(past, name)) for past in builds], size)
            for name in ("wall_s", "peak_anon_bytes", "bytes", "scratch_bytes")
        )
        if node.windowed and anon is not None:
            anon = min(anon, _WINDOW + max(past.peak_anon_bytes or 0 for past in builds))
        assert written is not None, "each build has a size"
        seconds = None if wall is None else round(wall, 3)
        return Prediction(seconds, _whole(anon), round(written), _whole(scratch), len(builds), basis)


class _OfKind:
    """The builds of one kind, found by likeness."""

    def __init__(self, builds: list[tuple[str, Past]]) -> None:
        self._all = builds

    @cached_property
    def _found(self) -> dict[tuple[str, str], list[tuple[str, Past]]]:
        found: dict[tuple[str, str], list[tuple[str, Past]]] = {}
        for target, past in self._all:
            for like in (("exact", past.exact), ("target", target), ("shape", past.shape)):
                found.setdefault(like, []).append((target, past))
        return found

    def like(self, node: Node) -> tuple[Basis | None, list[tuple[str, Past]]]:
        """The builds most like a target, and how they are."""
        exact, shape = fingerprints(node.kind, key_parts(node, {}, ("",) * len(node.sources), {}, {})["params"])
        wanted: tuple[tuple[Basis, tuple[str, str]], ...] = (
            ("same_parameters", ("exact", exact)),
            ("same_target", ("target", node.id)),
            ("same_shape", ("shape", shape)),
        )
        for basis, like in wanted:
            if like in self._found:
                return basis, self._found[like]
        return ("same_kind", self._all) if self._all and node.produces != "any" else (None, [])


def _distance(was: int | None, size: int) -> float:
    """How far apart two sizes are, as a ratio; what is not known, or has no input at all, comes last."""
    if was == size:
        return 0.0
    return abs(math.log(size / was)) if was and size else math.inf


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _scaled(measured: Sequence[tuple[int | None, float | None]], size: int) -> float | None:
    """One measure, given with the input's size of each build, at an input of ``size`` bytes; None when none has it."""
    known = [(was, value) for was, value in measured if value is not None]
    if not known:
        return None
    as_it_was = median(value for _was, value in known)
    proportional = median(value * size / was if was and size else value for was, value in known)
    points = [(was, value) for was, value in known if was]
    slopes = [
        (one - other) / (at - before)
        for (at, one), (before, other) in combinations(points, 2)
        if max(at, before) > _APART * min(at, before)
    ]
    if not slopes or not size:
        return proportional
    slope = median(slopes)
    line = median(value - slope * was for was, value in points) + slope * size
    low, high = sorted((as_it_was, proportional))
    return min(max(line, low), high)


def predict(
    plan: Mapping[str, Planned], todo: Iterable[str], history: History, sources: SourceReader
) -> dict[str, Prediction | None]:
    """The prediction of each target of ``todo``; None where there is none. ``plan`` holds inputs before consumers."""
    predictor, wanted = Predictor(history), set(todo)
    sizes: dict[str, int | None] = {}
    found: dict[str, Prediction | None] = {}
    for name, item in plan.items():
        made = None
        unseen = item.state == "virtual" and item.receipt is None
        if name in wanted or unseen:
            size = _input_size(item.node, sizes, sources)
            made = None if size is None else predictor.of(item.node, size)
        if name in wanted:
            found[name] = made
        sizes[name] = made.bytes if made is not None else None if name in wanted or unseen else _size(item)
    return found


def _input_size(node: Node, sizes: Mapping[str, int | None], sources: SourceReader) -> int | None:
    try:
        total = sum(sources.size({**source, "base": base}) for _pointer, source, base in node.sources)
    except RefusedInput:
        # It is missing: the run will say so.
        return None
    for name in input_ids(node):
        size = sizes[name]
        if size is None:
            return None
        total += size
    return total


def _size(item: Planned) -> int | None:
    return None if item.receipt is None else sum(int(file["size"]) for file in item.receipt["files"])
