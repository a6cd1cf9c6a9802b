"""``report``: what each step of a chain cost and gained, from one cached evaluation a candidate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ingot.core.digest import read_json
from ingot.core.stage import Format, Given, Hidden, Measure, Metric, Metrics, Progress, Role, Stage
from ingot.errors import RefusedInput
from ingot.stages.evaluate import Settings


class Report(Settings, Stage):
    """Collects evaluations; holds digests and measurements only, names are joined when it is shown."""

    kind: ClassVar[str] = "report"
    produces: ClassVar[Format] = "report"
    inputs: ClassVar[Mapping[str, Role]] = {
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
        "candidates": Role(("hf", "gguf", "coreml", "onnx"), many=True),
        "evaluations": Role(("evaluation",), many=True, optional=True),
    }
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("rows", "candidates"),
        Measure("smallest_bytes", "B"),
        Measure("best_perplexity", "1", "where a candidate has a perplexity"),
        Measure("worst_kl_divergence", "nats/token", "with a reference"),
    )

    def hidden(self) -> Hidden:
        """One ``evaluate`` for each candidate, with the settings of the report."""
        roles = {"candidate": "candidates", "data": "data", "reference": "reference"}
        return Hidden("evaluate", "candidates", roles, "evaluations", self.settings())

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Write report.json: one row a candidate, the reference first, each candidate once."""
        reference = next(iter(given.digests.get("reference", ())), None)
        expected = {*given.digests["candidates"], *([reference] if reference else [])}
        rows: dict[str, dict[str, Any]] = {}
        folders = given.many("evaluations")
        for index, folder in enumerate(folders, start=1):
            evaluation = _read(folder)
            self._check(evaluation, given, reference)
            row = {name: evaluation[name] for name in ("candidate", "container", "precision", "metrics")}
            rows.setdefault(row["candidate"], {**row, "not_measured": evaluation["not_measured"]})
            progress(index, len(folders), "evaluations")
        if set(rows) != expected:
            absent = sorted(expected - set(rows))
            raise RefusedInput(
                "E-REPORT-MISSING",
                "the evaluations are not those of the report's candidates",
                facts=[f"without an evaluation: {digest[:12]}" for digest in absent],
            )
        report = {
            "format": 1,
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


def _read(folder: Path) -> dict[str, Any]:
    try:
        value = read_json((folder / "evaluation.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedInput("E-REPORT-EVALUATION", f"an evaluation cannot be read: {error}") from error
    fields = {"candidate", "reference", "data", "settings", "container", "precision", "metrics", "not_measured"}
    if not isinstance(value, dict) or value.get("format") != 1 or not fields <= set(value):
        raise RefusedInput("E-REPORT-EVALUATION", "an evaluation is not of format 1")
    return value


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
