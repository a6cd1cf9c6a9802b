"""``logits``: what a reference says of held-out text, computed once and kept for every candidate.

Normally nobody writes this kind: ``report`` implies one for its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ingot.core.stage import (
    Device,
    Done,
    Format,
    Given,
    Least,
    Measure,
    Metric,
    Metrics,
    Progress,
    Reproducibility,
    Role,
    Stage,
)
from ingot.stages._scoring import Scoring


class Logits(Scoring, Stage):
    """The next-token distributions of a reference on held-out text, compressed."""

    kind: ClassVar[str] = "logits"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    produces: ClassVar[Format] = "logits"
    inputs: ClassVar[Mapping[str, Role]] = {"reference": Role(("hf",)), "data": Role(("dataset",))}
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "jinja2", "numpy", "safetensors", "torch", "transformers", "zstandard",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("tokens", "tokens"),
        Measure("documents", "documents", "without `windows`"),
        Measure("windows", "windows", "with `windows`"),
        Measure("nll", "nats/token"),
        Measure("stored_bytes", "B"),
        Measure("share_of_dump", "1"),
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Documents or windows are counted, as they are scored."""
        other = {"documents", "windows"} - {self.unit}
        return tuple(name for name in super().measured(roles) if name not in other)

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The reference."""
        del device
        return inputs.get("reference", Least()).weights * (4 if self.dtype == "float32" else 2)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """One pass of the reference; writes logits.json, units.jsonl and logits.bin."""
        from ingot.kit.scoring import run, stored, units

        backend = self.load(given.one("reference"), given, progress, self.longest)
        chosen = self.chosen(backend, given)
        units.check_context(backend, (unit.example for unit in chosen))
        progress.phase("score")
        with stored.Writer(out, chosen, backend.template.source) as writer:
            scores = run.score(backend, chosen, writer, progress)
        facts = {
            "reference": given.digests["reference"][0],
            "data": given.digests["data"][0],
            "settings": self.scoring(),
            "container": backend.container,
            "precision": backend.precision,
            "template": backend.template.source,
            "vocabulary": writer.vocabulary,
            "rows": writer.rows,
        }
        stored.write_index(out, facts, chosen, scores)
        nll = sum(document.nll for document in scores.documents)
        return Done(self._metrics(writer.bytes, nll, facts, len(chosen)), notes=self.where(backend))

    def _metrics(self, size: int, nll: float, facts: Mapping[str, Any], count: int) -> Metrics:
        rows, dump = facts["rows"], 4 * facts["rows"] * facts["vocabulary"]
        return {
            "tokens": Metric(rows, "tokens", "tokens scored"),
            self.unit: Metric(count, self.unit, f"{self.unit} scored"),
            "nll": Metric(nll / rows, "nats/token", "mean negative log-likelihood, float32 log-softmax", rows),
            "stored_bytes": Metric(size, "B", "compressed distributions"),
            "share_of_dump": Metric(size / dump, "1", "stored_bytes by tokens x vocabulary x 4 bytes", rows),
        }
