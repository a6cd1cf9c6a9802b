"""What a gate is and what judging it gives: plain frozen values, and their words for people and programs.

``core/gates.py`` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingot.core.pairs import Form, Interval

Bound = Literal["value", "lower", "upper", "confident", "proven"]
BOUNDS: tuple[Bound, ...] = ("value", "lower", "upper", "confident", "proven")
Severity = Literal["fail", "warn"]
Undecided = Literal["pass", "warn", "fail"]
#: What was found. ``undecided``: the samples do not tell; ``unknown``: nothing measured it; ``new``: there is nothing
#: to compare with yet.
Finding = Literal["kept", "broken", "undecided", "unknown", "new"]
#: What follows from it. ``fail`` and ``unknown`` stop a task and a promotion.
Word = Literal["pass", "warn", "fail", "unknown", "none"]
#: How a spec and an entry of the log write that a metric is compared with another one.
FORMS: Mapping[str, Form] = {"relative_to": "ratio", "minus": "difference"}
_SIGNS = {"max": "≤", "min": "≥"}
_FORMS = {"ratio": "/", "difference": "−"}


@dataclass(frozen=True)
class Gate:
    """One gate as it is judged: presets are spread out, ``reference`` has become the name of a node.

    ``form`` says how the metric is compared with that of ``other``: a node of the spec, ``last_good`` or ``active``.
    ``rule`` names what set the gate where it is not written itself: ``regression``, or a preset.
    """

    name: str
    max: float | None = None
    min: float | None = None
    bound: Bound = "value"
    severity: Severity = "fail"
    undecided: Undecided = "warn"
    form: Form | None = None
    other: str = ""
    rule: str = ""

    @property
    def target(self) -> str:
        """The name of the node that measures it."""
        return split_gate(self.name)[0]

    @property
    def metric(self) -> str:
        """What that node measures."""
        return split_gate(self.name)[1]


@dataclass(frozen=True)
class Compared:
    """How a number came of two measurements: ``value`` is the other one's, ``method`` tells whence the interval is."""

    name: str
    value: float
    digest: str
    method: Literal["paired", "intervals", "values"]
    documents: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As entries of the log and ``--json`` hold it."""
        data = {"name": self.name, "value": self.value, "measured": self.digest, "method": self.method}
        return data if self.documents is None else data | {"documents": self.documents}


@dataclass(frozen=True)
class Verdict:
    """One limit of one gate, judged.

    ``value`` is the number that was compared: the metric's value or an end of its interval; of a relative gate the
    ratio or difference. ``reason`` says why there is none, or what it would take to tell; ``nearest`` holds the names
    that exist and look alike.
    """

    gate: str
    target: str
    metric: str
    side: Literal["max", "min"]
    limit: float
    bound: Bound = "value"
    value: float | None = None
    finding: Finding = "unknown"
    reason: str = ""
    nearest: tuple[str, ...] = ()
    interval: Interval | None = None
    severity: Severity = "fail"
    undecided: Undecided = "warn"
    form: Form | None = None
    other: str = ""
    compared: Compared | None = None
    rule: str = ""

    @property
    def word(self) -> Word:
        """What follows: a gate of severity ``warn`` stops nothing, whatever was found."""
        told: dict[Finding, Word] = {
            "kept": "pass", "broken": "fail", "undecided": self.undecided, "unknown": "unknown", "new": "none",
        }  # fmt: skip
        word = told[self.finding]
        return "warn" if self.severity == "warn" and word in ("fail", "unknown") else word

    @property
    def passed(self) -> bool | None:
        """Whether what was judged may go on: False where it fails, None where nothing recorded answers the gate."""
        return {"fail": False, "unknown": None}.get(self.word, True)

    @property
    def limits(self) -> dict[str, Any]:
        """The threshold as it is recorded: what makes two failures of a gate one."""
        other = {word: self.other for word, form in FORMS.items() if form == self.form}
        return {self.side: self.limit, "bound": self.bound, **other}

    @property
    def what(self) -> str:
        """What is compared, in words: ``regression: report.gguf.nll − active (upper end of its interval)``."""
        beside = f" {_FORMS[self.form]} {self.compared.name if self.compared else self.other}" if self.form else ""
        end = f" ({self.bound} end of its interval)" if self.bound in ("lower", "upper") else ""
        return f"{self.rule}{': ' if self.rule else ''}{self.gate}{beside}{end}"

    @property
    def found(self) -> str:
        """What was found, in words: the number, its interval, and how it came of two measurements."""
        if self.value is None:
            near = f" (nearest: {', '.join(self.nearest)})" if self.nearest else ""
            return f"{self.reason}{near}"
        ends = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.value:.6g}{ends}" + (f" ({'; '.join(self.notes)})" if self.notes else "")

    @property
    def notes(self) -> list[str]:
        """What there is to say of a number: how it came of two measurements, and what it would take to tell."""
        return [*([] if self.compared is None else [_of_two(self.compared)]), *filter(None, [self.reason])]

    def __str__(self) -> str:
        head = f"{self.what} {_SIGNS[self.side]} {self.limit:g}: "
        if self.value is None:
            return f"{head}{'not known, ' if self.finding == 'unknown' else ''}{self.found}"
        shown = {"pass": "pass", "warn": "WARN", "fail": "FAIL"}[self.word]
        return f"{head}{shown} at {self.found}"

    def to_dict(self) -> dict[str, Any]:
        """The verdict as ``--json`` shows it."""
        return {
            "gate": self.gate,
            "rule": self.rule or None,
            "limit": self.limits,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "compared": None if self.compared is None else self.compared.to_dict(),
            "verdict": self.word,
            "finding": self.finding,
            "severity": self.severity,
            "reason": self.reason or None,
        }


def _of_two(compared: Compared) -> str:
    how = {
        "paired": f"paired over {compared.documents} documents",
        "intervals": "from both intervals",
        "values": "values alone",
    }[compared.method]
    return f"against {compared.value:.6g}, {how}"


def split_gate(name: str) -> tuple[str, str]:
    """(target, metric) of a gate's name: the metric follows the last dot. ValueError when there is none."""
    target, dot, metric = name.rpartition(".")
    if not dot or not target or not metric:
        raise ValueError(f"a gate is named TARGET.METRIC, and {name!r} is not")
    return target, metric
