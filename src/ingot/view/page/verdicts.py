"""How the verdict of a gate reads on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def word_of(verdict: Verdict) -> str:
    """pass, warn, fail, unknown, or none: there is nothing to compare with yet."""
    return str(getattr(verdict, "word", {True: "pass", False: "fail", None: "unknown"}[verdict.passed]))


def level(verdict: Verdict) -> str:
    """The level of its mark: ok, note, warn or bad."""
    return _LEVELS[word_of(verdict)]


def said(verdict: Verdict) -> str:
    """The verdict in a word."""
    return _SAID[word_of(verdict)]


def beside(verdict: Verdict) -> str:
    """What stands beside a number: ``fails ≤ 0.5``."""
    end = "" if verdict.bound == "value" else f" ({verdict.bound})"
    return f"{_BESIDE[word_of(verdict)]} {limit(verdict)}{end}"


def limit(verdict: Verdict) -> str:
    """The limit as the metric is written; beside another measurement ``≤ 1.05 × base`` or ``≤ active +0.01``."""
    sign = "≤" if verdict.side == "max" else "≥"
    form = getattr(verdict, "form", None)
    if form is None:
        return f"{sign} {written(verdict.metric, verdict.limit)}".replace(" ", "\u00a0")
    other = getattr(verdict, "other", "")
    if form == "ratio":
        return f"{sign} {figure(verdict.limit)} × {other}"
    return f"{sign} {other} {figure(verdict.limit, signed=True)}"


def value(verdict: Verdict) -> str:
    """The number that was compared."""
    if verdict.value is None:
        return "none"
    return written(verdict.metric, verdict.value) if getattr(verdict, "form", None) is None else figure(verdict.value)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as ``report.json`` has it."""
    whole = getattr(verdict, "to_dict", None)
    if whole is not None:
        return dict(whole())
    bound = {verdict.side: verdict.limit, "bound": verdict.bound}
    return {"gate": verdict.gate, "limit": bound, "value": verdict.value, "verdict": word_of(verdict)}
