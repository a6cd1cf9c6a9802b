"""What all kinds have in common that ask a candidate something: a task, wanted by a report or written as a target.

A kind of task is one file of ``stages/`` like any other: a subclass of ``Task`` with its parameters, its roles and
``run``, which ends with ``write_evaluation``. A report has them under ``tasks:`` by names that the spec gives:
``tasks: {gsm8k: {kind: harness, …}}`` makes one hidden target ``REPORT.CANDIDATE.gsm8k`` of each candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ingot.core.digest import read_json
from ingot.core.stage import ELEMENT, Format, Given, Hidden, Metric, Role, Stage, asking_kinds, load_kind
from ingot.errors import RefusedInput

#: Everything that can be run here and asked.
MODELS: tuple[Format, ...] = ("hf", "gguf", "coreml", "onnx")

_FORMAT = 2
_FIELDS = {
    "kind", "candidate", "reference", "data", "settings", "container", "precision", "metrics", "not_measured",
}  # fmt: skip


class Task(Stage):
    """A kind that measures one candidate and writes ``evaluation.json``."""

    produces: ClassVar[Format] = "evaluation"
    inputs: ClassVar[Mapping[str, Role]] = {"candidate": Role(MODELS)}
    #: What fills its roles under a report, as in ``Hidden.roles``; of a role that is not here, the report's own.
    wiring: ClassVar[Mapping[str, str]] = {"candidate": ELEMENT}
    #: The roles of the report whose elements are asked.
    per: ClassVar[tuple[str, ...]] = ("reference", "candidates")
    #: The role of the report whose elements are not asked.
    besides: ClassVar[str] = ""

    @classmethod
    def implied(cls, name: str, params: Mapping[str, object]) -> tuple[Hidden, ...]:
        """The hidden targets of a report that has this task under a name; those that others read stand first."""
        roles = {role: cls.wiring.get(role, role) for role in cls.inputs}
        return (Hidden(cls.kind, cls.per, roles, "evaluations", params, name, cls.besides, ("tasks", name)),)

    @classmethod
    def lacks(cls, name: str, params: Mapping[str, object], roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """What a report with these roles lacks for this task: (role, one sentence)."""
        for hidden in cls.implied(name, params):
            for role, source in hidden.roles.items():
                needed = not load_kind(hidden.kind).inputs[role].optional
                if needed and source != ELEMENT and ":" not in source and source not in roles:
                    yield source, f"the task {name!r} of the kind {cls.kind!r} needs the role {source!r}"

    def settings(self) -> dict[str, Any]:
        """The parameters as plain data."""
        return self.model_dump(mode="json", by_alias=True)


def task_kinds() -> tuple[str, ...]:
    """The kinds that a report can have under ``tasks:``; it has one ``evaluate`` of each candidate anyhow."""
    return asking_kinds()


def implied_by(name: str, written: Mapping[str, Any]) -> tuple[Hidden, ...]:
    """The hidden targets of a task as a report writes it: ``{kind: KIND, …}``."""
    kind, params = _read(written)
    return kind.implied(name, params)


def lacking(name: str, written: Mapping[str, Any], roles: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What a report with these roles lacks for a task as it writes it."""
    kind, params = _read(written)
    return kind.lacks(name, params, roles)


def _read(written: Mapping[str, Any]) -> tuple[type[Task], dict[str, Any]]:
    kind = load_kind(str(written["kind"]))
    assert issubclass(kind, Task), f"{kind.kind} is no task"
    return kind, {key: value for key, value in written.items() if key != "kind"}


@dataclass(frozen=True)
class Found:
    """What was found out about a candidate; ``not_measured`` gives a reason a metric.

    ``reference``: the digest of what it was compared with, where that is not what is in the role of that name.
    """

    container: str
    precision: str
    metrics: Mapping[str, Metric]
    not_measured: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None


def write_evaluation(kind: str, settings: Mapping[str, Any], given: Given, out: Path, found: Found) -> None:
    """``evaluation.json``: digests and measurements only, no name of a target."""
    evaluation = {
        "format": _FORMAT,
        "kind": kind,
        "candidate": given.digests["candidate"][0],
        "reference": found.reference or next(iter(given.digests.get("reference", ())), None),
        "data": next(iter(given.digests.get("data", ())), None),
        "settings": dict(settings),
        "container": found.container,
        "precision": found.precision,
        "metrics": {name: metric.to_dict() for name, metric in found.metrics.items()},
        "not_measured": dict(found.not_measured),
    }
    text = json.dumps(evaluation, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What ``write_evaluation`` wrote; RefusedInput (E-REPORT-EVALUATION) where it is not that."""
    try:
        value = read_json((folder / "evaluation.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedInput("E-REPORT-EVALUATION", f"an evaluation cannot be read: {error}") from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT or not set(value) >= _FIELDS:
        raise RefusedInput("E-REPORT-EVALUATION", f"an evaluation is not of format {_FORMAT}")
    return value
