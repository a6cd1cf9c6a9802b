"""``evaluate``: what one candidate is worth, measured on held-out documents; cached as its own result.

Normally nobody writes this kind: ``report`` implies one for each of its candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import (
    Device,
    Format,
    Frozen,
    Given,
    Least,
    Metric,
    Metrics,
    Progress,
    Reproducibility,
    Role,
    Stage,
)
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    from ingot.kit.backends import Backend

#: What only running a candidate can tell.
_RUN = (
    "perplexity", "nll", "nll_difference", "kl_divergence", "kl_p99", "top1_agreement",
    "prompt_tokens_per_second", "generation_tokens_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """What was found out about a candidate; ``not_measured`` gives a reason a metric."""

    container: str
    precision: str
    metrics: Mapping[str, Metric]
    not_measured: Mapping[str, str] = field(default_factory=dict)


class Settings(Frozen):
    """How candidates are measured; shared by ``evaluate`` and ``report``."""

    documents: Annotated[int, Field(ge=2)] = Field(
        default=24, description="held-out documents to score, the first in content order that have tokens to score"
    )
    max_length: Annotated[int, Field(ge=8, le=131072)] = Field(
        default=256, description="tokens of a document that are read; the rest is cut"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what Hugging Face models compute in; float32 adds no rounding of its own"
    )
    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="bootstrap resamples of the documents behind each 95 % interval"
    )
    prompt_tokens: Annotated[int, Field(ge=1, le=131072)] = Field(
        default=128, description="length of the prompt whose reading is timed"
    )
    generation_tokens: Annotated[int, Field(ge=1, le=131072)] = Field(
        default=32, description="tokens generated one by one when generation is timed"
    )
    repeats: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="timed runs after one warm-up; the median is reported"
    )

    def settings(self) -> dict[str, Any]:
        """The settings alone, as plain data."""
        return {name: getattr(self, name) for name in Settings.model_fields}


class Evaluate(Settings, Stage):
    """Perplexity, divergence from a reference, size and speed of one candidate."""

    kind: ClassVar[str] = "evaluate"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    produces: ClassVar[Format] = "evaluation"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(("hf", "gguf", "coreml")),
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "gguf", "jinja2", "llama-cpp-python", "numpy", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The reference, which is held beside a candidate of any form."""
        del device
        return inputs.get("reference", Least()).weights * (4 if self.dtype == "float32" else 2)

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Score, measure size and speed; writes evaluation.json and documents.jsonl."""
        from ingot.kit.backends import container_of

        folder = given.one("candidate")
        container = container_of(folder)
        if container == "coreml":
            from ingot.kit.backends import coreml

            facts = coreml.facts(folder)
            not_measured = dict.fromkeys(_RUN, coreml.NOT_RUN) | facts.not_measured
            return self._write(given, out, _Found(container, facts.precision, facts.metrics, not_measured))
        backend = self._open(folder, given, progress)
        metrics, documents = self._measure(backend, given, progress)
        _write_documents(out / "documents.jsonl", documents)
        return self._write(given, out, _Found(container, backend.precision, metrics))

    def _open(self, folder: Path, given: Given, progress: Progress) -> Backend:
        from ingot.kit.backends import open_backend

        progress.phase("load")
        context = max(self.max_length, self.prompt_tokens + self.generation_tokens)
        return open_backend(folder, dtype=self.dtype, context=context, threads=given.threads)

    def _measure(self, backend: Backend, given: Given, progress: Progress) -> tuple[dict[str, Metric], Iterable[Any]]:
        from ingot.kit import measure
        from ingot.kit.chat import read_rows

        folder = given.maybe("reference")
        reference = None if folder is None else self._open(folder, given, progress)
        rows = list(read_rows(given.one("data"), "eval"))
        chosen = list(measure.held_out(reference or backend, rows, limit=self.documents, max_length=self.max_length))
        if not chosen:
            raise RefusedInput(
                "E-EVAL-EMPTY",
                f"none of the {len(rows)} held-out rows has a token to score within {self.max_length}",
                hint="raise max_length, or the data set's split.eval",
            )
        examples = [example for _, example in chosen]
        for model in [backend] if reference is None else [backend, reference]:
            measure.check_context(model, examples)
        if reference is not None:
            measure.check_same_text(backend, reference, chosen, self.max_length)
        progress.phase("score")
        scores = measure.score(backend, reference, chosen, progress)
        del reference
        progress.phase("speed")
        prompt = [token for example in examples for token in example.ids][: self.prompt_tokens]
        metrics = {
            **measure.quality(scores, self.resamples),
            **measure.size(backend),
            **measure.speed(backend, prompt, self.generation_tokens, self.repeats),
        }
        return metrics, scores.documents

    def _write(self, given: Given, out: Path, found: _Found) -> Metrics:
        evaluation = {
            "format": 1,
            "candidate": given.digests["candidate"][0],
            "reference": next(iter(given.digests.get("reference", ())), None),
            "data": given.digests["data"][0],
            "settings": self.settings(),
            "container": found.container,
            "precision": found.precision,
            "metrics": {name: metric.to_dict() for name, metric in found.metrics.items()},
            "not_measured": dict(found.not_measured),
        }
        text = json.dumps(evaluation, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        return found.metrics


def _write_documents(path: Path, documents: Iterable[Any]) -> None:
    """One line a document: its id and its sums, none of its text."""
    lines = [json.dumps(asdict(document), sort_keys=True, allow_nan=False) + "\n" for document in documents]
    path.write_text("".join(lines), encoding="utf-8")
