"""How the verdict of a gate reads on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.view.page.measures import figure, written

if TYPE_CHECKING:
    from ingot.core.gates import Verdict

_LEVELS = {"pass": "ok", "none": "note", "warn": "warn", "unknown": "warn", "fail": "bad"}
_SAID = {
    "pass": "pass",
    "none": "nothing to compare with yet",
    "warn": "warning",
    "unknown": "not known",
    "fail": "FAIL",
}
_BESIDE = {"pass": "passes", "none": "new:", "warn": "warns:", "unknown": "not known:", "fail": "fails"}


def level(verdict: Verdict) -> str:
    """The level of its mark: ok, note, warn or bad."""
    return _LEVELS[verdict.word]


def standing(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The worst level of several verdicts, at least one, and how many pass: ``2 of 3 pass``."""
    found = [level(verdict) for verdict in verdicts]
    worst = next(name for name in ("bad", "warn", "note", "ok") if name in found)
    return worst, f"{found.count('ok')} of {len(found)} pass"


def said(verdict: Verdict) -> str:
    """The verdict in a word."""
    return _SAID[verdict.word]


def beside(verdict: Verdict) -> str:
    """What stands beside a number: ``fails ≤ 0.5``."""
    end = "" if verdict.bound == "value" else f" ({verdict.bound})"
    return f"{_BESIDE[verdict.word]} {limit(verdict)}{end}"


def limit(verdict: Verdict) -> str:
    """The limit as the metric is written; beside another measurement ``≤ 1.05 × base`` or ``≤ active +0.01``."""
    sign = "≤" if verdict.side == "max" else "≥"
    if verdict.form is None:
        return f"{sign} {written(verdict.metric, verdict.limit)}".replace(" ", "\u00a0")
    if verdict.form == "ratio":
        return f"{sign} {figure(verdict.limit)} × {verdict.other}"
    return f"{sign} {verdict.other} {figure(verdict.limit, signed=True)}"


def value(verdict: Verdict) -> str:
    """The number that was compared."""
    if verdict.value is None:
        return "none"
    return written(verdict.metric, verdict.value) if verdict.form is None else figure(verdict.value)
