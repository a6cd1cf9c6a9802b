"""``evaluate``: what one candidate is worth, measured on held-out documents; cached as its own result.

Normally nobody writes this kind: ``report`` implies one for each of its candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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
from ingot.stages._scored import Scorer
from ingot.stages._scoring import Scoring
from ingot.stages._task import MODELS, Found, Task, write_evaluation

if TYPE_CHECKING:
    from ingot.kit.backends import Backend


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


class Settings(Scoring):
    """How candidates are measured; shared by ``evaluate`` and ``report``."""

    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="bootstrap resamples of the documents or windows behind each 95 % interval"
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
    other_tokenizer: Literal["refuse", "bits_per_byte"] = Field(
        default="refuse",
        description="a candidate whose tokenizer gives other tokens than the reference's: refused, or measured by "
        "itself and compared in bits per byte alone",
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
    revision: ClassVar[int] = 4
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(MODELS),
        "data": Role(("dataset",)),
        "reference": Role(("hf", "logits"), optional=True),
        "logits": Role(("logits",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "coremltools", "gguf", "jinja2", "llama-cpp-python", "numpy", "onnx", "onnxruntime",
        "safetensors", "torch", "transformers",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = ("zstandard",)
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("tokens", "tokens"),
        Measure("documents", "documents", "without `windows`"),
        Measure("windows", "windows", "with `windows`"),
        Measure("nll", "nats/token"),
        Measure("perplexity", "1"),
        Measure("bits_per_byte", "bits/byte", "unless the tokenizer changes the text"),
        Measure("calibration_error", "1"),
        Measure("nll_difference", "nats/token", "with a reference"),
        Measure("kl_divergence", "nats/token", "with a reference"),
        Measure("kl_p99", "nats", "with a reference"),
        Measure("top1_agreement", "1", "with a reference"),
        Measure("bits_per_byte_difference", "bits/byte", "with a reference, as bits_per_byte"),
        Measure("exact_match", "1", "with `answers`"),
        Measure("pattern_accuracy", "1", "as exact_match, where a row or `answers.pattern` tells what is right"),
        Measure("answers_ended", "1", "with `answers`"),
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "bits/parameter"),
        Measure("sparsity", "1", "of a Hugging Face candidate that has linear layers"),
        Measure("prompt_tokens_per_second", "tokens/s", "unless the candidate is `coreml` and this is no Mac"),
        Measure("generation_tokens_per_second", "tokens/s", "as prompt_tokens_per_second"),
        Measure("energy_per_token", "J/token", "where the speed is measured and a counter of energy can be read"),
        Measure("prompt_energy_per_token", "J/token", "as energy_per_token"),
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """What needs a reference, answers or windows only where there are any."""
        absent = {"documents", "windows"} - {self.unit}
        if "reference" not in roles:
            absent |= {*_AGAINST, "bits_per_byte_difference"}
        if self.answers is None:
            absent |= {"exact_match", "pattern_accuracy", "answers_ended"}
        return tuple(name for name in super().measured(roles) if name not in absent)

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """A candidate with logits of its own is the reference of others."""
        if {"reference", "logits"} <= roles:
            yield "logits", "'logits' are those of the candidate itself, which is then compared with nothing"

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """A reference that is a model, which is held beside a candidate of any form."""
        del device
        return inputs.get("reference", Least()).weights * (4 if self.dtype == "float32" else 2)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Score, measure size, speed and energy; writes evaluation.json and documents.jsonl."""
        from ingot.kit import energy_per_token, measure
        from ingot.kit.backends import container_of

        folder = given.one("candidate")
        container = container_of(folder)
        backend = self.load(folder, given, progress, self._context())
        scorer = Scorer(self, given, progress)
        scored = scorer.candidate(backend) if given.maybe("logits") is None else scorer.itself()
        answered, answers = self._ask(backend, given, progress)
        progress.phase("speed")
        speed, missing = energy_per_token.with_speed(backend, scored.prompt, self.generation_tokens, self.repeats)
        metrics = {**scored.metrics, **answered, **measure.size(backend), **speed}
        _write_lines(out / "documents.jsonl", scored.documents)
        if self.answers is not None:
            _write_lines(out / "answers.jsonl", answers)
        missing = {**scored.missing, **missing}
        found = Found(container, backend.precision, metrics, missing, scored.reference)
        write_evaluation(self.kind, self.settings(), given, out, found)
        return Done(metrics, notes=self.where(backend))

    def _context(self) -> int:
        return max(self._most(self.longest), self._room(), self.prompt_tokens + self.generation_tokens)

    def _most(self, tokens: int) -> int:
        # another tokenizer may need more tokens for a text that is cut by the reference's
        return tokens * (4 if self.other_tokenizer == "bits_per_byte" else 1)

    def _room(self) -> int:
        """The tokens of a question with its answer at the most."""
        return 0 if self.answers is None else self._most(self.max_length) + self.answers.max_tokens

    def _ask(self, backend: Backend, given: Given, progress: Progress) -> tuple[Mapping[str, Metric], list[Any]]:
        if self.answers is None:
            return {}, []
        from ingot.kit import answers
        from ingot.kit.chat import read_rows
        from ingot.kit.patterns import Matcher
        from ingot.kit.scoring import units

        progress.phase("ask")
        matcher = Matcher()
        rows = units.in_order(read_rows(given.one("data"), "eval"))[: self.answers.documents]
        asked = answers.questions(rows, self.answers.pattern, matcher)
        limits = answers.Limits(self.answers.max_tokens, self._room())
        found = answers.ask(backend, asked, limits, matcher, progress)
        matcher.close()
        return answers.metrics(found, self.answers.max_tokens), found


_AGAINST = ("nll_difference", "kl_divergence", "kl_p99", "top1_agreement")


def _write_lines(path: Path, documents: Iterable[Any]) -> None:
    """One line a document: its id and its sums, none of its text; of a question the answer too."""
    lines = [
        json.dumps(asdict(document), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        for document in documents
    ]
    path.write_text("".join(lines), encoding="utf-8")
