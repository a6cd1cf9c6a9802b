"""What a ``gate-failed``, a ``gate-warned`` and a ``promote`` entry say of a verdict, and the verdict read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.core.gates import Gate, Other, Side, Verdict, judge
from ingot.core.verdicts import FORMS

Receipt = Mapping[str, Any]


def entry(verdict: Verdict, target: str, current: Mapping[str, Receipt]) -> dict[str, Any]:
    """The fields of an entry that records a failure or a warning, its type and its subject among them.

    ``reference`` is the digest of what was compared with: of a relative gate the other measurement, else the reference
    that the measurement itself has.
    """
    receipt = current[target]
    reference = receipt["inputs"].get("reference")
    compared = verdict.compared
    found = {
        "type": "gate-failed" if verdict.word == "fail" else "gate-warned",
        "target": target,
        "digest": receipt["digest"],
        "gate": verdict.gate,
        "metric": verdict.metric,
        "value": verdict.value,
        "limit": verdict.limits,
        "reference": compared.digest if compared else reference["digest"] if reference else None,
    }
    return found | further(verdict)


def further(verdict: Verdict) -> dict[str, Any]:
    """What is recorded only where there is something to tell: of relative gates, of intervals, of warnings."""
    found: dict[str, Any] = {}
    if verdict.interval is not None and (verdict.compared or verdict.bound != "value"):
        found["interval"] = list(verdict.interval)
    if verdict.compared is not None:
        found["compared"] = verdict.compared.to_dict()
    if verdict.rule:
        found["rule"] = verdict.rule
    if verdict.finding == "undecided":
        found["finding"] = verdict.finding
    if verdict.severity != "fail":
        found["severity"] = verdict.severity
    if verdict.bound in ("confident", "proven") and verdict.undecided != "warn":
        found["undecided"] = verdict.undecided
    return found


def gate_of(recorded: Mapping[str, Any]) -> Gate:
    """The gate that an entry records, with the one limit that it records; KeyError, TypeError where it has none."""
    limit = recorded["limit"]
    sides: dict[str, Any] = {side: float(limit[side]) for side in ("min", "max") if side in limit}
    if not sides:
        raise KeyError("limit")
    words = [word for word in FORMS if word in limit]
    return Gate(
        str(recorded["gate"]),
        **sides,
        bound=limit.get("bound", "value"),
        severity=recorded.get("severity", "fail"),
        undecided=recorded.get("undecided", "warn"),
        form=FORMS[words[0]] if words else None,
        other=str(limit[words[0]]) if words else "",
        rule=str(recorded.get("rule", "")),
    )


def again(recorded: Mapping[str, Any], side: Side, other: Side | None) -> list[Verdict]:
    """An entry's gate judged again from the measurements that it names.

    A paired interval is drawn again where the documents of both are here; else the one that was recorded counts.
    """
    gate, compared = gate_of(recorded), recorded.get("compared")
    if compared is None:
        return judge(gate, side)
    drawn = judge(gate, side, Other(str(compared["name"]), other))
    if compared["method"] != "paired" or any(it.compared and it.compared.method == "paired" for it in drawn):
        return drawn
    low, high = recorded["interval"]
    return judge(gate, side, Other(str(compared["name"]), other, interval=(float(low), float(high))))
