"""Bisection over a chain: which element to measure next, and what follows from what was measured. Measures nothing.

It rests on an assumption: once the metric is beyond the limit it stays there further down the chain, so half of what is
left can be ruled out by each measurement. Both ends are measured, and whatever is known contradicts the assumption or
does not: ``contradictions`` lists what does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ingot.core.quantities import number_text

#: How an element came to be known that was not measured for this search.
_HOW = {"defined": "by definition"}
Verdict = Literal["found", "holds", "broken_at_start", "not_measured"]


@dataclass(frozen=True)
class Limit:
    """``max`` or ``min`` of a metric; a value at the limit holds."""

    side: Literal["max", "min"]
    value: float

    def holds(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value <= self.value if self.side == "max" else value >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.side == 'max' else '≥'} {self.value:g}"


@dataclass
class Search:
    """What is known of a chain of ``count`` elements, the first of them the start."""

    count: int
    limit: Limit
    #: Index → value; None where it was tried and the metric could not be measured.
    values: dict[int, float | None] = field(default_factory=dict)

    def next(self) -> int | None:
        """The element to measure next; None when all is known that bisection needs."""
        last, bad = self.count - 1, self._first_bad()
        if last not in self.values:
            return last
        if bad is None:
            return None
        start = next((index for index in range(bad) if self.values.get(index, 0.0) is not None), None)
        if start is not None and start not in self.values:
            return start
        good = self._last_good(bad)
        if good is None:
            return None
        unknown = [index for index in range(good + 1, bad) if index not in self.values]
        return min(unknown, key=lambda index: (abs(2 * index - good - bad), index), default=None)

    def step(self) -> tuple[int, int] | None:
        """The step found: the last element that holds, and the first that does not. Between: not measured."""
        bad = self._first_bad()
        good = None if bad is None else self._last_good(bad)
        return None if bad is None or good is None else (good, bad)

    def verdict(self) -> Verdict:
        """What came of it, once ``next`` gives None."""
        if self.step() is not None:
            return "found"
        if self._first_bad() is not None:
            return "broken_at_start"
        return "not_measured" if self.values.get(self.count - 1) is None else "holds"

    def contradictions(self) -> list[tuple[int, int]]:
        """Neighbours among what is known of which the first is beyond the limit and the second is not."""
        known = [(index, self.limit.holds(value)) for index, value in sorted(self.values.items()) if value is not None]
        return [(one, other) for (one, held), (other, holds) in itertools.pairwise(known) if holds and not held]

    def _first_bad(self) -> int | None:
        found = (
            index for index, value in sorted(self.values.items()) if value is not None and not self.limit.holds(value)
        )
        return next(found, None)

    def _last_good(self, bad: int) -> int | None:
        held = [
            index for index in range(bad) if (value := self.values.get(index)) is not None and self.limit.holds(value)
        ]
        return held[-1] if held else None


@dataclass(frozen=True)
class Probe:
    """What is known of one element: ``how`` is ``reused``, ``built``, ``defined`` or ``not_measured``."""

    name: str
    node: str
    how: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    place: Mapping[str, Any] | None = None
    reason: str | None = None

    def to_dict(self, limit: Limit) -> dict[str, Any]:
        """The probe as ``--json`` shows it."""
        place = {name: None if self.place is None else self.place[name] for name in ("digest", "origin", "index")}
        return {
            "target": self.name,
            "measurement": self.node,
            "how": self.how,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "holds": None if self.value is None else limit.holds(self.value),
            "sure": self.sure(limit),
            "reason": self.reason,
            **place,
        }

    def sure(self, limit: Limit) -> bool | None:
        """Whether the whole interval is on one side of the limit; None without one."""
        if self.interval is None:
            return None
        return limit.holds(self.interval[0]) == limit.holds(self.interval[1])


@dataclass
class Line:
    """The search along one chain: its elements by name, the probes made, and how they are told."""

    names: tuple[str, ...]
    metric: str
    limit: Limit
    probes: dict[int, Probe] = field(default_factory=dict)
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        self.search = Search(len(self.names), self.limit)

    def title(self) -> str:
        """What is searched, and what that assumes."""
        chain = " → ".join(self.names)
        return f"{self.names[-1]}: {self.metric} {self.limit} along {chain} (assuming that no later step mends it)"

    def take(self, index: int, probe: Probe) -> str:
        """Take in a probe; the line that tells it."""
        self.search.values[index], self.probes[index] = probe.value, probe
        start = f"  {probe.name:<{max(map(len, self.names))}}  "
        if probe.value is None:
            return f"{start}not measured: {probe.reason or 'its measurement has no such metric'}"
        word = "holds" if self.limit.holds(probe.value) else "breaks"
        doubt = ", the limit lies in its interval" if probe.sure(self.limit) is False else ""
        return f"{start}{number_text(probe.value):>10}  {word} ({_HOW.get(probe.how, probe.how)}{doubt})"

    def notes(self) -> list[str]:
        """What contradicts the assumption, in words."""
        return [
            f"{self.names[one]} ({self._value(one)}) breaks the limit and {self.names[other]} ({self._value(other)}), "
            "made of it, holds it again: the assumption fails here, so an earlier step may break it too"
            for one, other in self.search.contradictions()
        ]

    def conclusion(self) -> str:
        """The last line."""
        verdict, step, last = self.search.verdict(), self.search.step(), self.names[-1]
        if step is not None:
            between = self.names[step[0] + 1 : step[1]]
            name = " → ".join((*between, self.names[step[1]]))
            title = f"{name} ({len(between) + 1} steps, not measured between)" if between else name
            return f"the lossy step is {title}: {self.metric} {self._value(step[0])} → {self._value(step[1])}"
        if verdict == "not_measured":
            return f"{last}: {self.metric} could not be measured there, so nothing can be said of its chain"
        if verdict == "broken_at_start":
            first = min(index for index, value in self.search.values.items() if value is not None)
            return f"no step breaks it: {self.names[first]} at the start has {self.metric} {self._value(first)} already"
        return f"no step breaks it: {last} has {self.metric} {self._value(len(self.names) - 1)}"

    def _value(self, index: int) -> str:
        value = self.search.values[index]
        return "none" if value is None else number_text(value)

    def to_dict(self) -> dict[str, Any]:
        """The search as ``--json`` shows it."""
        return {
            "target": self.names[-1],
            "chain": list(self.names),
            "verdict": self.search.verdict(),
            "step": self._step(),
            "probes": [probe.to_dict(self.limit) for _, probe in sorted(self.probes.items())],
            "contradictions": [
                {"breaks": self.names[one], "holds": self.names[other]} for one, other in self.search.contradictions()
            ],
            "conclusion": self.conclusion(),
        }

    def _step(self) -> dict[str, Any] | None:
        step = self.search.step()
        if step is None:
            return None
        return {
            "from": self.names[step[0]],
            "to": self.names[step[1]],
            "between": list(self.names[step[0] + 1 : step[1]]),
            "before": self.search.values[step[0]],
            "after": self.search.values[step[1]],
        }
