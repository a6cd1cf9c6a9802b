"""``evaluate``: what one candidate is worth, measured on held-out documents; cached as its own result.

Normally nobody writes this kind: ``report`` implies one for each of its candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import (
    Device,
    Done,
    Frozen,
    Given,
    Least,
    Measure,
    Metric,
    Progress,
    Reproducibility,
    Role,
)
from ingot.errors import RefusedInput
from ingot.stages._task import MODELS, Found, Task, write_evaluation

if TYPE_CHECKING:
    from ingot.kit.backends import Backend
    from ingot.kit.chat import Example, Row


class Answers(Frozen):
    """Questions that are asked: held-out prompts, answered by greedy decoding."""

    documents: int = Field(
        default=100, ge=1, le=100_000, description="held-out documents to ask, the first in content order"
    )
    max_tokens: int = Field(default=32, ge=1, le=131072, description="tokens after which an answer is cut")
    pattern: str | None = Field(
        default=None,
        max_length=2000,
        description="regular expression that a right answer matches in full, for rows that have none of their own",
    )


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
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where Hugging Face models compute; auto prefers a GPU"
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
    # Left out where it is not given, it is in no key that was there before it.
    answers: Answers | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="questions to ask besides; null asks none",
    )

    def settings(self) -> dict[str, Any]:
        """The settings alone, as plain data."""
        return self.model_dump(mode="json", include=set(Settings.model_fields))


class Evaluate(Settings, Task):
    """Perplexity, divergence from a reference, size and speed of one candidate."""

    kind: ClassVar[str] = "evaluate"
    revision: ClassVar[int] = 3
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(MODELS),
        "data": Role(("dataset",)),
        "reference": Role(("hf",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "coremltools", "gguf", "jinja2", "llama-cpp-python", "numpy", "onnx", "onnxruntime",
        "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("tokens", "tokens"),
        Measure("documents", "documents"),
        Measure("nll", "nats/token"),
        Measure("perplexity", "1"),
        Measure("nll_difference", "nats/token", "with a reference"),
        Measure("kl_divergence", "nats/token", "with a reference"),
        Measure("kl_p99", "nats", "with a reference"),
        Measure("top1_agreement", "1", "with a reference"),
        Measure("exact_match", "1", "with `answers`"),
        Measure("pattern_accuracy", "1", "as exact_match, where a row or `answers.pattern` tells what is right"),
        Measure("answers_ended", "1", "with `answers`"),
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "bits/parameter"),
        Measure("prompt_tokens_per_second", "tokens/s", "unless the candidate is `coreml` and this is no Mac"),
        Measure("generation_tokens_per_second", "tokens/s", "as prompt_tokens_per_second"),
        Measure("energy_per_token", "J/token", "where the speed is measured and a counter of energy can be read"),
        Measure("prompt_energy_per_token", "J/token", "as energy_per_token"),
    )

    def device_wanted(self) -> Device:
        """Where Hugging Face models compute; anything else has a runtime of its own."""
        return self.device

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The reference, which is held beside a candidate of any form."""
        del device
        return inputs.get("reference", Least()).weights * (4 if self.dtype == "float32" else 2)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Score, measure size, speed and energy; writes evaluation.json and documents.jsonl."""
        from ingot.kit import device as devices
        from ingot.kit.backends import container_of, gpu_of

        folder = given.one("candidate")
        container = container_of(folder)
        backend = self._open(folder, given, progress)
        metrics, unknown, documents, answers = self._measure(backend, given, progress)
        _write_lines(out / "documents.jsonl", documents)
        if self.answers is not None:
            _write_lines(out / "answers.jsonl", answers)
        found = Found(container, backend.precision, metrics, unknown)
        write_evaluation(self.kind, self.settings(), given, out, found)
        where = devices.resolve("cpu" if gpu_of(backend) is None else self.device)
        return Done(metrics, notes={**devices.described(where), "runtime": backend.runtime})

    def _open(self, folder: Path, given: Given, progress: Progress) -> Backend:
        from ingot.kit.backends import open_backend

        progress.phase("load")
        answer = 0 if self.answers is None else self.answers.max_tokens
        context = max(self.max_length + answer, self.prompt_tokens + self.generation_tokens)
        return open_backend(folder, dtype=self.dtype, context=context, threads=given.threads, device=self.device)

    def _measure(
        self, backend: Backend, given: Given, progress: Progress
    ) -> tuple[dict[str, Metric], dict[str, str], Iterable[Any], Iterable[Any]]:
        """The metrics, why others are missing, what was found of each document scored, and of each question asked."""
        from ingot.kit import energy_per_token, measure

        folder = given.maybe("reference")
        reference = None if folder is None else self._open(folder, given, progress)
        chosen = self._held_out(reference or backend, given, self.documents)
        examples = [example for _, example in chosen]
        for model in [backend] if reference is None else [backend, reference]:
            measure.check_context(model, examples)
        if reference is not None:
            measure.check_same_text(backend, reference, chosen, self.max_length)
        asked = [] if self.answers is None else self._held_out(reference or backend, given, self.answers.documents)
        progress.phase("score")
        scores = measure.score(backend, reference, chosen, progress)
        del reference
        answered, answers = self._ask(backend, asked, progress)
        progress.phase("speed")
        prompt = [token for example in examples for token in example.ids][: self.prompt_tokens]
        speed, unknown = energy_per_token.with_speed(backend, prompt, self.generation_tokens, self.repeats)
        metrics = {**measure.quality(scores, self.resamples), **answered, **measure.size(backend), **speed}
        return metrics, unknown, scores.documents, answers

    def _held_out(self, backend: Backend, given: Given, limit: int) -> list[tuple[Row, Example]]:
        from ingot.kit import measure
        from ingot.kit.chat import read_rows

        rows = list(read_rows(given.one("data"), "eval"))
        chosen = list(measure.held_out(backend, rows, limit=limit, max_length=self.max_length))
        if not chosen:
            raise RefusedInput(
                "E-EVAL-EMPTY",
                f"none of the {len(rows)} held-out rows has a token to score within {self.max_length}",
                hint="raise max_length, or the data set's split.eval",
            )
        return chosen

    def _ask(
        self, backend: Backend, chosen: list[tuple[Row, Example]], progress: Progress
    ) -> tuple[Mapping[str, Metric], list[Any]]:
        if self.answers is None:
            return {}, []
        from ingot.kit import answers
        from ingot.kit.patterns import Matcher

        progress.phase("ask")
        matcher = Matcher()
        asked = answers.questions(chosen, self.answers.pattern, matcher)
        found = answers.ask(backend, asked, self.answers.max_tokens, matcher, progress)
        matcher.close()
        return answers.metrics(found, self.answers.max_tokens), found


def _write_lines(path: Path, documents: Iterable[Any]) -> None:
    """One line a document: its id and its sums, none of its text; of a question the answer too."""
    lines = [
        json.dumps(asdict(document), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        for document in documents
    ]
    path.write_text("".join(lines), encoding="utf-8")
