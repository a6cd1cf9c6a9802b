"""Gates: judge recorded measurements against the limits that a spec declares.

Measuring and judging are two steps. A gate ``"report.gguf@Q4_K_M.kl_divergence": {max: 0.5}`` reads the
metric after the last dot of the target before it. Nothing here measures, builds or writes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Bound = Literal["value", "lower", "upper"]
#: A target's recorded metrics (name → ``Metric.to_dict()``), or None when nothing is recorded for it.
MetricsOf = Callable[[str], Mapping[str, Mapping[str, object]] | None]


@dataclass(frozen=True)
class Verdict:
    """One limit of one gate, judged.

    ``value`` is the number that was compared (the metric's value or an end of its interval).
    ``passed`` is None when nothing recorded answers the gate; ``reason`` then says why and
    ``nearest`` holds the names that exist and look alike.
    """

    gate: str
    target: str
    metric: str
    side: Literal["max", "min"]
    limit: float
    bound: Bound = "value"
    value: float | None = None
    passed: bool | None = None
    reason: str = ""
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = "≤" if self.side == "max" else "≥"
        what = self.gate if self.bound == "value" else f"{self.gate} ({self.bound} end of its interval)"
        if self.passed is None:
            near = f" (nearest: {', '.join(self.nearest)})" if self.nearest else ""
            return f"{what} {sign} {self.limit:g}: not known, {self.reason}{near}"
        return f"{what} {sign} {self.limit:g}: {'pass' if self.passed else 'FAIL'} at {self.value:.6g}"


def split_gate(name: str) -> tuple[str, str]:
    """(target, metric) of a gate's name: the metric follows the last dot. ValueError when there is none."""
    target, dot, metric = name.rpartition(".")
    if not dot or not target or not metric:
        raise ValueError(f"a gate is named TARGET.METRIC, and {name!r} is not")
    return target, metric


def judge(gates: Mapping[str, Mapping[str, object]], metrics_of: MetricsOf) -> list[Verdict]:
    """A Verdict for each limit of each gate, in the order of the gates, ``min`` before ``max``.

    A limit is inclusive: a value equal to it passes. NaN passes nothing. ``bound: upper`` (``lower``)
    compares that end of the metric's 95 % interval, so that "below 0" means demonstrably below 0.
    """
    return [verdict for name, gate in gates.items() for verdict in _judge_one(name, gate, metrics_of)]


def passes(verdicts: Sequence[Verdict]) -> bool | None:
    """The verdict on a whole: False if any failed, None if any is not known, True otherwise."""
    if any(verdict.passed is False for verdict in verdicts):
        return False
    return None if any(verdict.passed is None for verdict in verdicts) else True


def _judge_one(name: str, gate: Mapping[str, object], metrics_of: MetricsOf) -> Iterator[Verdict]:
    target, metric = split_gate(name)
    bound: Bound = _bound(gate.get("bound", "value"))
    value, reason, nearest = _look_up(metrics_of(target), metric, bound)
    sides: tuple[Literal["min", "max"], ...] = ("min", "max")
    for side in sides:
        limit = gate.get(side)
        if isinstance(limit, int | float):
            passed = None if value is None else (value <= limit if side == "max" else value >= limit)
            yield Verdict(name, target, metric, side, float(limit), bound, value, passed, reason, nearest)


def _bound(word: object) -> Bound:
    if word == "upper":
        return "upper"
    return "lower" if word == "lower" else "value"


def _look_up(
    metrics: Mapping[str, Mapping[str, object]] | None, metric: str, bound: Bound
) -> tuple[float | None, str, tuple[str, ...]]:
    """(value, why there is none, nearest names)."""
    if metrics is None:
        return None, "the target has not been measured", ()
    record = metrics.get(metric)
    if record is None:
        nearest = difflib.get_close_matches(metric, list(metrics), n=3, cutoff=0.5)
        return None, f"nothing measures {metric!r} there", tuple(nearest)
    value: object = record.get("value")
    if bound != "value":
        interval = record.get("interval")
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            return None, f"{metric!r} was recorded without an interval", ()
        value = interval[0 if bound == "lower" else 1]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"{metric!r} is not a number", ()
    return float(value), "", ()
