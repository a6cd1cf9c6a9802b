"""``report``: what each step of a chain cost and gained, from one cached evaluation a candidate and task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ingot.core.names import suggestion
from ingot.core.stage import (
    ELEMENT,
    Device,
    Format,
    Given,
    Hidden,
    Keyless,
    Measure,
    Metric,
    Metrics,
    Progress,
    Role,
    Stage,
)
from ingot.errors import RefusedInput
from ingot.stages._task import MODELS, implied_by, read_evaluation, task_kinds
from ingot.stages.evaluate import Settings


def _task(written: dict[str, Any]) -> dict[str, Any]:
    """A task as it is written: its parameters are checked by its own kind, where the target is read."""
    kind = written.get("kind")
    if kind not in task_kinds():
        hint = suggestion(kind, task_kinds()) if isinstance(kind, str) else None
        raise ValueError(f"'kind' is one of {', '.join(task_kinds())}{f'; {hint}' if hint else ''}")
    return written


#: The name of the hidden target that holds the reference's logits.
_LOGITS = "logits"


def _free(name: str) -> str:
    if name == _LOGITS:
        raise ValueError(f"{name!r} is the name of the reference's logits; give the task another")
    return name


_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$"), AfterValidator(_free)]


class Report(Settings, Stage):
    """Collects evaluations; holds digests and measurements only, names are joined when it is shown."""

    kind: ClassVar[str] = "report"
    revision: ClassVar[int] = 3
    produces: ClassVar[Format] = "report"
    inputs: ClassVar[Mapping[str, Role]] = {
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
        "candidates": Role(MODELS, many=True),
        "judge": Role(("hf", "gguf"), optional=True),
        "judgements": Role(("dataset",), optional=True),
        "evaluations": Role(("evaluation",), many=True, optional=True),
    }
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("rows", "candidates"),
        Measure("smallest_bytes", "B"),
        Measure("best_perplexity", "1", "where a candidate has a perplexity"),
        Measure("worst_kl_divergence", "nats/token", "with a reference"),
    )

    # What they are made of is in the keys of the evaluations, which the report reads.
    tasks: Annotated[dict[_Name, Annotated[dict[str, Any], AfterValidator(_task)]], Keyless()] = Field(
        default_factory=dict,
        description="what every candidate is asked besides, by name: `{kind: KIND, …}` with the parameters of that "
        "kind; measured under `REPORT.CANDIDATE.NAME`",
    )

    def device_wanted(self) -> Device | None:
        """It computes nothing: its ``device`` is that of what it implies."""
        return None

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Divergences only where there is a reference."""
        absent = () if "reference" in roles else ("worst_kl_divergence",)
        return tuple(name for name in super().measured(roles) if name not in absent)

    def hidden(self) -> tuple[Hidden, ...]:
        """The reference's logits, an ``evaluate`` of it by them and one of each candidate against them, and the tasks.

        So one pass over the text is made of each model, whatever the number of candidates.
        """
        settings, both = self.settings(), {"candidate": ELEMENT, "data": "data"}
        logits = Hidden("logits", ("reference",), {"reference": ELEMENT, "data": "data"}, None, self.scoring(), _LOGITS)
        first = Hidden("evaluate", ("reference",), {**both, "logits": f"{_LOGITS}:*"}, "evaluations", settings)
        rest = {**both, "reference": f"{_LOGITS}:reference"}
        others = Hidden("evaluate", ("candidates",), rest, "evaluations", settings, besides="reference")
        return (
            logits,
            first,
            others,
            *(hidden for name, task in self.tasks.items() for hidden in implied_by(name, task)),
        )

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Write report.json: one row a candidate, the reference first, each candidate once, and its tasks in it."""
        reference = next(iter(given.digests.get("reference", ())), None)
        rows: dict[str, dict[str, Any]] = {}
        tasks: list[tuple[str, dict[str, Any]]] = []
        folders = given.many("evaluations")
        for index, (folder, digest) in enumerate(zip(folders, given.digests["evaluations"], strict=True), start=1):
            evaluation = read_evaluation(folder)
            if evaluation["kind"] == "evaluate":
                self._check(evaluation, given, reference)
                rows.setdefault(evaluation["candidate"], {**_part(evaluation), "evaluation": digest, "tasks": []})
            else:
                tasks.append((digest, evaluation))
            progress(index, len(folders), "evaluations")
        _check_rows(rows, {*given.digests["candidates"], *([reference] if reference else [])})
        for digest, task in tasks:
            _add_task(rows, task, digest)
        report = {
            "format": 2,
            "reference": reference,
            "data": given.digests["data"][0],
            "settings": self.settings(),
            "rows": list(rows.values()),
        }
        text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
        return _metrics(list(rows.values()))

    def _check(self, evaluation: Mapping[str, Any], given: Given, reference: str | None) -> None:
        """Refuse an evaluation made on other data, with other settings or against another reference."""
        of_reference = evaluation["candidate"] == reference and evaluation["reference"] is None
        facts = [
            f"{name}: {found!r} instead of {wanted!r}"
            for name, found, wanted in (
                ("data", evaluation["data"], given.digests["data"][0]),
                ("settings", evaluation["settings"], self.settings()),
                ("reference", evaluation["reference"], None if of_reference else reference),
            )
            if found != wanted
        ]
        if facts:
            raise RefusedInput("E-REPORT-MIXED", "an evaluation was not measured like the others", facts=facts)


def _part(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: evaluation[name] for name in ("candidate", "container", "precision", "metrics", "not_measured")}


def _check_rows(rows: Mapping[str, Any], expected: set[str]) -> None:
    if set(rows) != expected:
        raise RefusedInput(
            "E-REPORT-MISSING",
            "the evaluations are not those of the report's candidates",
            facts=[f"without an evaluation: {digest[:12]}" for digest in sorted(expected - set(rows))],
        )


def _add_task(rows: Mapping[str, dict[str, Any]], task: Mapping[str, Any], digest: str) -> None:
    """Add what a task measured to the row of its candidate; which name it has there is joined when it is shown."""
    if task["candidate"] not in rows:
        raise RefusedInput(
            "E-REPORT-MISSING",
            "a task was given to something that is no candidate of the report",
            facts=[f"candidate: {task['candidate'][:12]}"],
        )
    listed = rows[task["candidate"]]["tasks"]
    if digest not in [item["evaluation"] for item in listed]:
        listed.append({"evaluation": digest, **{name: task[name] for name in ("kind", "metrics", "not_measured")}})


def _metrics(rows: list[dict[str, Any]]) -> Metrics:
    """Counts, and the extremes that one looks for first; each names no candidate, the rows do."""
    metrics = {"rows": Metric(len(rows), "candidates", "candidates of the report, the reference included")}
    for name, metric, pick, how in (
        ("smallest_bytes", "bytes", min, "the smallest candidate's weight files"),
        ("best_perplexity", "perplexity", min, "the lowest perplexity of all rows"),
        ("worst_kl_divergence", "kl_divergence", max, "the highest mean KL divergence from the reference"),
    ):
        found = [row["metrics"][metric] for row in rows if metric in row["metrics"]]
        if found:
            metrics[name] = Metric(pick(item["value"] for item in found), found[0]["unit"], how, len(found))
    return metrics
