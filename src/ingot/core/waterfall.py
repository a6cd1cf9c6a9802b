"""The quality waterfall of a report: what each step of its candidates' chains cost or gained in a metric.

A chain goes from the reference (where it is no ancestor: from the first artifact that was measured) to a candidate. A
step leads from one measured artifact to the next that was measured alike: on the same data, with the same settings and
tools. What lies between and was not measured is part of the step, and named. A difference is paired by document where
both evaluations are at hand, else it is the difference of the two values, and says so. Measures of the distance from
the reference (``kl_divergence``, …) are 0 for the reference itself, or 1, by definition; nothing else is filled in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ingot.core.directions import AGAINST_ITSELF, better
from ingot.core.item_sums import recorded_sums
from ingot.core.lineage import Lineage, Link, against, candidate, conditions, inputs, series_of
from ingot.core.lookup import Lookup, Receipt
from ingot.core.pairs import Sums, paired
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.project import Project

#: How a difference was had: paired by document; of a measure of the distance from the reference, whose own is known by
#: definition; of two numbers that are no samples (bytes); else of two sampled values, which says little by itself.
Basis = Literal["paired", "reference", "exact", "unpaired"]

#: The order in which metrics are shown that most people look at first.
_FIRST = ("nll_difference", "perplexity", "bits_per_byte", "kl_divergence", "top1_agreement")
#: What says nothing about quality by step.
_COUNTS = frozenset(("tokens", "documents", "windows", "cost", "gpu_hours"))


@dataclass(frozen=True)
class Value:
    """A measured number and where it stands; ``defined``: it is so by definition and was not measured."""

    value: float
    unit: str
    interval: tuple[float, float] | None = None
    #: Samples; None for what is counted.
    n: int | None = None
    evaluation: str | None = None
    origin: str | None = None
    index: int | None = None
    defined: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The value as ``--json`` shows it."""
        place = {"evaluation": self.evaluation, "origin": self.origin, "index": self.index, "defined": self.defined}
        interval = None if self.interval is None else list(self.interval)
        return {"value": self.value, "unit": self.unit, "interval": interval, "n": self.n, **place}


@dataclass(frozen=True)
class Step:
    """From one measured artifact to the next: ``through`` are the links that it takes, its end the last of them."""

    start: Link
    through: tuple[Link, ...]
    before: Value
    after: Value
    difference: float
    interval: tuple[float, float] | None
    basis: Basis
    documents: int | None
    bytes: tuple[float | None, float | None]

    @property
    def end(self) -> Link:
        """The artifact that the step gives."""
        return self.through[-1]

    @property
    def between(self) -> tuple[Link, ...]:
        """What was not measured on the way."""
        return self.through[:-1]

    def reading(self, metric: str) -> Literal["better", "worse", "no difference shown", "unknown"]:
        """What the step did to the metric; unknown without an interval, or where no direction is known."""
        way = better(metric)
        exact = (self.difference, self.difference) if self.basis == "exact" else None
        interval = self.interval or exact
        if way is None or interval is None:
            return "unknown"
        low, high = interval
        if low <= 0 <= high:
            return "no difference shown"
        return "better" if (high < 0) == (way == "lower") else "worse"


@dataclass(frozen=True)
class Chain:
    """One candidate: the steps that lead to it (indexes into the waterfall's), and why some cannot be shown."""

    candidate: Link
    start: Link | None
    steps: tuple[int, ...]
    #: What comes after the last step and was not measured, the candidate among it; and why, where that is known.
    unmeasured: tuple[Link, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Waterfall:
    """One metric over all chains of a report; steps that chains share stand once."""

    metric: str
    unit: str
    steps: tuple[Step, ...]
    chains: tuple[Chain, ...]


class Waterfalls:
    """All waterfalls of one report, from its receipt and the logs; artifacts are read only to pair documents."""

    def __init__(self, project: Project, report: Receipt, lookup: Lookup | None = None) -> None:
        self._project, self.report = project, report
        self._lineage = Lineage(lookup or Lookup(project))
        self._reference: str | None = next((str(it["digest"]) for it in inputs(report, "reference")), None)
        self._read: dict[tuple[str, str], Sums | None] = {}

    @cached_property
    def measured(self) -> dict[str, dict[str, Receipt]]:
        """By task and digest, the measurement: those of the report, and those of the logs that were made alike."""
        found: dict[str, dict[str, Receipt]] = {}
        alike: dict[str, str] = {}
        own = set()
        for task, receipt in series_of(self.report, self._lineage):
            found.setdefault(task, {}).setdefault(candidate(receipt), receipt)
            alike[self._how(receipt)] = task
            own.add((task, candidate(receipt)))
        for receipt in self._lineage.lookup.with_role("candidate"):
            known = alike.get(self._how(receipt))
            # What the report itself was made of is not replaced; of others the newest counts.
            if known is not None and (known, candidate(receipt)) not in own:
                found[known][candidate(receipt)] = receipt
        return found

    def _how(self, receipt: Receipt) -> str:
        """How something was measured; the reference itself is measured in a way of its own, against nothing."""
        is_reference = candidate(receipt) == self._reference
        return json.dumps([conditions(receipt, self._lineage.lookup), is_reference, against(receipt)], sort_keys=True)

    @cached_property
    def chains(self) -> tuple[tuple[Link, ...], ...]:
        """The chain of each candidate, in the order of the report, from the reference where that is an ancestor."""
        return tuple(self._lineage.chain(item, self._reference) for item in inputs(self.report, "candidates"))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """What was measured of at least one candidate, the best known first; those of a task as ``TASK.METRIC``."""
        names = {
            f"{task}.{name}" if task else name: None
            for task, receipts in self.measured.items()
            for receipt in receipts.values()
            for name in receipt["metrics"]
            if name not in _COUNTS
        }
        first = [name for name in _FIRST if name in names]
        return (*first, *(name for name in names if name not in first))

    def of(self, metric: str) -> Waterfall:
        """The waterfall of one metric; UsageError (E-METRIC) for one that was not measured."""
        if metric not in self.metrics:
            raise unknown_metric(metric, self.metrics)
        steps: dict[tuple[str, str], Step] = {}
        chains = []
        for links in self.chains:
            start, found, rest = self._steps(links, metric)
            for step in found:
                steps.setdefault((step.start.digest, step.end.digest), step)
            places = {pair: number for number, pair in enumerate(steps)}
            taken = tuple(places[step.start.digest, step.end.digest] for step in found)
            chains.append(Chain(links[-1], start, taken, rest, self._why(links[-1], metric) if rest else None))
        unit = next(str(receipt["metrics"][name]["unit"]) for name, receipt in self._with(metric))
        return Waterfall(metric, unit, tuple(steps.values()), tuple(chains))

    def _with(self, metric: str) -> Iterator[tuple[str, Receipt]]:
        task, _, name = metric.rpartition(".")
        for receipt in self.measured[task].values():
            if name in receipt["metrics"]:
                yield name, receipt

    def _steps(self, links: Sequence[Link], metric: str) -> tuple[Link | None, list[Step], tuple[Link, ...]]:
        """Where a chain starts, its steps, and what follows the last measured artifact."""
        start: tuple[int, Value] | None = None
        first, found = None, []
        for at, link in enumerate(links):
            value = self._value(link, metric)
            if value is None:
                continue
            if start is not None:
                found.append(self._step(links[start[0] : at + 1], metric, start[1], value))
            first, start = first or link, (at, value)
        return first, found, tuple(links[start[0] + 1 :] if start else links)

    def _value(self, link: Link, metric: str) -> Value | None:
        task, _, name = metric.rpartition(".")
        receipt = self.measured.get(task, {}).get(link.digest)
        found = None if receipt is None else receipt["metrics"].get(name)
        if found is not None and receipt is not None:
            interval = (found["interval"][0], found["interval"][1]) if "interval" in found else None
            place = str(receipt["digest"]), str(receipt["origin"]), int(receipt["index"])
            return Value(found["value"], str(found["unit"]), interval, found.get("n"), *place)
        if link.digest == self._reference and not task and name in AGAINST_ITSELF:
            unit = next(str(other["metrics"][name]["unit"]) for _, other in self._with(metric))
            return Value(AGAINST_ITSELF[name], unit, defined=True)
        return None

    def _step(self, links: Sequence[Link], metric: str, before: Value, after: Value) -> Step:
        change = after.value - before.value
        interval: tuple[float, float] | None = None
        count: int | None = None
        basis: Basis = "exact" if before.n is None and after.n is None else "unpaired"
        if before.defined:
            basis = "reference"
            interval = after.interval and (after.interval[0] - before.value, after.interval[1] - before.value)
        else:
            one, other = (self._sums(link, metric) for link in (links[0], links[-1]))
            if one is not None and other is not None and one.ids == other.ids:
                interval, basis, count = paired(other, one, "difference"), "paired", len(one.ids)
        sizes = self._size(links[0]), self._size(links[-1])
        return Step(links[0], tuple(links[1:]), before, after, change, interval, basis, count, sizes)

    def _size(self, link: Link) -> float | None:
        value = self._value(link, "bytes")
        return None if value is None else value.value

    def _sums(self, link: Link, metric: str) -> Sums | None:
        """What a measurement keeps of each document; None where its artifact is not whole, or keeps it otherwise."""
        task, _, name = metric.rpartition(".")
        receipt = self.measured[task][link.digest]
        place = str(receipt["digest"]), name
        if place not in self._read:
            self._read[place] = recorded_sums(self._project.store, receipt, name)
        return self._read[place]

    def _why(self, link: Link, metric: str) -> str | None:
        """Why a candidate has no such measurement, in the words of its evaluation."""
        task, _, name = metric.rpartition(".")
        receipt = self.measured.get(task, {}).get(link.digest)
        if receipt is None:
            return None
        return reasons_of(self._project, receipt).get(name)


def reasons_of(project: Project, receipt: Mapping[str, Any]) -> Mapping[str, str]:
    """Why a measurement lacks what it lacks, by metric, in its own words; nothing where its artifact is not whole."""
    store, digest = project.store, str(receipt["digest"])
    if store.presence(digest, receipt["files"])[0] != "present":
        return {}
    path = store.object_path(digest) / "evaluation.json"
    value = _object(path.read_text(encoding="utf-8")) if path.is_file() else None
    reasons = None if value is None else value.get("not_measured")
    return reasons if isinstance(reasons, dict) else {}


def _object(text: str) -> Mapping[str, Any] | None:
    """What an artifact says as a JSON object; None where it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def unknown_metric(metric: str, known: Sequence[str]) -> UsageError:
    """The error for a metric that nothing has measured, with the nearest names."""
    import difflib

    near = difflib.get_close_matches(metric, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"measured are {', '.join(known)}" if known else None
    return UsageError("E-METRIC", f"nothing has measured {metric!r}", hint=hint)
