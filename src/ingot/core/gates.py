"""Gates: judge recorded measurements against the limits that a spec declares, alone or beside another measurement.

Measuring and judging are two steps. A gate ``"report.gguf@Q4_K_M.kl_divergence": {max: 0.5}`` reads the
metric after the last dot of the target before it. Nothing here measures, builds or writes. What a gate is stands in
``core/verdicts.py``, what is compared with what in ``core/gate_sides.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ingot.core.pairs import Interval, Sums, combined, needed, paired, together
from ingot.core.verdicts import Compared, Finding, Gate, Verdict, Word, split_gate

__all__ = ["Compared", "Gate", "Other", "Side", "Verdict", "judge", "passes", "split_gate", "worst"]


@dataclass(frozen=True)
class Side:
    """A recorded measurement: its metrics (name → ``Metric.to_dict()``), its digest, and its sums a document."""

    metrics: Mapping[str, Mapping[str, object]]
    digest: str = ""
    sums: Callable[[str], Sums | None] = lambda _metric: None


@dataclass(frozen=True)
class Other:
    """What a metric is compared with, under the name that people read; without a ``side`` the ``reason`` why.

    ``new``: that is no fault, since there cannot be one yet. ``interval`` is taken instead of a paired one that would
    be drawn here: what was recorded when it was.
    """

    name: str
    side: Side | None
    reason: str = ""
    new: bool = False
    interval: Interval | None = None


def judge(gate: Gate, side: Side | None, other: Other | None = None) -> list[Verdict]:
    """A Verdict for each limit of a gate, ``min`` before ``max``.

    A limit is inclusive: a value equal to it passes. NaN passes nothing. ``bound: upper`` (``lower``)
    compares that end of the metric's 95 % interval, so that "below 0" means demonstrably below 0. ``confident`` passes
    where the whole interval keeps the limit and fails where the whole interval breaks it; ``proven`` fails there too,
    and passes wherever the value keeps it. In between the samples do not tell.
    """
    found = _number(gate, side, other)
    sides: tuple[Literal["min", "max"], ...] = ("min", "max")
    verdicts = []
    for which in sides:
        limit = gate.min if which == "min" else gate.max
        if limit is not None:
            verdict = Verdict(
                gate.name, gate.target, gate.metric, which, float(limit), gate.bound,
                severity=gate.severity, undecided=gate.undecided, form=gate.form, other=gate.other, rule=gate.rule,
            )  # fmt: skip
            verdicts.append(_decided(verdict, found))
    return verdicts


def passes(verdicts: Sequence[Verdict]) -> bool | None:
    """The verdict on a whole: False if any failed, None if any is not known, True otherwise."""
    if any(verdict.passed is False for verdict in verdicts):
        return False
    return None if any(verdict.passed is None for verdict in verdicts) else True


def worst(verdicts: Sequence[Verdict]) -> Word | None:
    """The word that tells most of several verdicts; None where there are none."""
    order: tuple[Word, ...] = ("fail", "unknown", "warn", "pass", "none")
    return next((word for word in order if any(verdict.word == word for verdict in verdicts)), None)


@dataclass(frozen=True)
class _Number:
    """A number to be judged, of how many samples of which kind it is; or why there is none."""

    value: float | None = None
    interval: Interval | None = None
    samples: tuple[int, str] | None = None
    compared: Compared | None = None
    finding: Finding = "unknown"
    reason: str = ""
    nearest: tuple[str, ...] = ()


def _number(gate: Gate, side: Side | None, other: Other | None) -> _Number:
    ours = _look_up(side, gate.metric)
    if gate.form is None or side is None or ours.value is None:
        return ours
    if other is None or other.side is None:
        reason = f"there is nothing to compare with: {gate.other}" if other is None else other.reason
        return _Number(finding="new" if other is not None and other.new else "unknown", reason=reason)
    theirs = _look_up(other.side, gate.metric)
    if theirs.value is None:
        return replace(theirs, reason=f"of {other.name}: {theirs.reason}")
    return _of_both(gate, (side, ours), (other, theirs))


def _of_both(gate: Gate, one: tuple[Side, _Number], two: tuple[Other, _Number]) -> _Number:
    """The ratio or difference of two numbers, its interval from pairs of documents where both have them."""
    (side, ours), (other, theirs) = one, two
    assert gate.form is not None
    assert ours.value is not None
    assert theirs.value is not None
    assert other.side is not None
    value = together(ours.value, theirs.value, gate.form)
    if value is None:
        return _Number(reason=f"{gate.metric!r} of {other.name} is 0, of which there is no ratio")
    interval, documents = (other.interval, None) if other.interval else _pair(gate, side, other.side)
    if interval is not None:
        compared = Compared(other.name, theirs.value, other.side.digest, "paired", documents)
        return _Number(value, interval, None if documents is None else (documents, "documents"), compared)
    interval = combined((ours.value, ours.interval), (theirs.value, theirs.interval), gate.form)
    compared = Compared(other.name, theirs.value, other.side.digest, "intervals" if interval else "values")
    return _Number(value, interval, ours.samples, compared)


def _pair(gate: Gate, ours: Side, theirs: Side) -> tuple[Interval | None, int | None]:
    assert gate.form is not None
    one, two = ours.sums(gate.metric), theirs.sums(gate.metric)
    if one is None or two is None or one.ids != two.ids:
        return None, None
    return paired(one, two, gate.form), len(one.ids)


def _look_up(side: Side | None, metric: str) -> _Number:
    if side is None:
        return _Number(reason="the target has not been measured")
    record = side.metrics.get(metric)
    if record is None:
        nearest = difflib.get_close_matches(metric, list(side.metrics), n=3, cutoff=0.5)
        return _Number(reason=f"nothing measures {metric!r} there", nearest=tuple(nearest))
    value, interval = record.get("value"), record.get("interval")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _Number(reason=f"{metric!r} is not a number")
    ends = (float(interval[0]), float(interval[1])) if isinstance(interval, list | tuple) else None
    return _Number(float(value), ends, _samples(side, record))


def _samples(side: Side, record: Mapping[str, object]) -> tuple[int, str] | None:
    """How much was drawn: what has a value a token was drawn by documents."""
    count, tokens, documents = record.get("n"), side.metrics.get("tokens"), side.metrics.get("documents")
    if tokens is not None and documents is not None and tokens.get("value") == count:
        return int(str(documents["value"])), "documents"
    return (count, "samples") if isinstance(count, int) else None


def _decided(verdict: Verdict, found: _Number) -> Verdict:
    known = replace(
        verdict, value=found.value, interval=found.interval, compared=found.compared, finding=found.finding,
        reason=found.reason, nearest=found.nearest,
    )  # fmt: skip
    if found.value is None:
        return known
    if verdict.bound != "value" and found.interval is None:
        reason = f"{verdict.metric!r} was recorded without an interval"
        if verdict.form is not None:
            reason = f"of {verdict.metric!r} there is no interval of its {verdict.form}"
        return replace(known, value=None, finding="unknown", reason=reason)
    return _judged(known, found)


def _judged(verdict: Verdict, found: _Number) -> Verdict:
    value, interval, bound = found.value, found.interval, verdict.bound
    assert value is not None
    if bound in ("lower", "upper"):
        assert interval is not None
        value = interval[0 if bound == "lower" else 1]
    ends = interval if bound in ("confident", "proven") and interval is not None else (value, value)
    kept = [_keeps(verdict, end) for end in ends]
    if all(kept) if bound == "confident" else _keeps(verdict, value):
        return replace(verdict, value=value, finding="kept")
    if not any(kept):
        return replace(verdict, value=value, finding="broken")
    reason = "not enough samples to say" + needed(value, ends, verdict.limit, found.samples)
    return replace(verdict, value=value, finding="undecided", reason=reason)


def _keeps(verdict: Verdict, value: float) -> bool:
    return value <= verdict.limit if verdict.side == "max" else value >= verdict.limit
