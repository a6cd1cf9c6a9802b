"""``samples``: what a model answers to held-out prompts, or to prompts of the spec, to be read side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ingot.core.stage import Done, Format, Given, Hidden, Measure, Progress, Reproducibility, Role
from ingot.stages._samples import Asked, asked
from ingot.stages._task import MODELS, Found, Task, write_evaluation

if TYPE_CHECKING:
    from ingot.kit.backends import Backend
    from ingot.kit.generate import Allowed, Decoding
    from ingot.kit.samples import Prompt

_HOLDING = ("jsonschema", "llguidance")


class Samples(Asked, Task):
    """Generates an answer to each prompt."""

    kind: ClassVar[str] = "samples"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    produces: ClassVar[Format] = "samples"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(MODELS),
        "data": Role(("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "coremltools", "gguf", "jinja2", "jsonschema", "llama-cpp-python", "llguidance", "numpy",
        "onnx", "onnxruntime", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("samples", "answers"),
        Measure("tokens", "tokens"),
        Measure("ended", "1"),
        Measure("distinct_answers", "1"),
        Measure("distinct_words", "1", "where an answer has 25 words"),
        Measure("repetition", "1", "where an answer has four words"),
        Measure("json_valid", "1", "with `json_schema`"),
    )

    @classmethod
    def implied(cls, name: str, params: Mapping[str, object]) -> tuple[Hidden, ...]:
        """One hidden target a candidate; with prompts of the spec it does not depend on the data."""
        return (asked(cls.per, "evaluations", params, name, ("tasks", name)),)

    def tools_used(self) -> tuple[str, ...]:
        """What holds answers to a schema counts with a schema."""
        return tuple(name for name in self.tools if self.json_schema is not None or name not in _HOLDING)

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Whether answers are JSON is asked with a schema."""
        return tuple(name for name in super().measured(roles) if self.json_schema is not None or name != "json_valid")

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Prompts come from one place."""
        return self.prompted(roles)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Answer every prompt; writes samples.jsonl and evaluation.json."""
        from ingot.kit import samples

        prompts = self._prompts(given)
        backend = self.opened(given.one("candidate"), given, progress, dtype=self.dtype, context=self.context)
        progress.phase("answer")
        how = samples.How(self._decoding(), self.context, self._masks(backend))
        found = samples.answer(backend, prompts, how, progress)
        samples.write(out / "samples.jsonl", found)
        metrics, missing = samples.metrics(found, self.max_tokens)
        if self.json_schema is not None:
            metrics["json_valid"] = samples.valid(found, self.json_schema)
        measured = Found(backend.container, backend.precision, metrics, missing)
        write_evaluation(self.kind, self.settings(), given, out, measured)
        return Done(metrics, notes=self.where(backend))

    def _prompts(self, given: Given) -> list[Prompt]:
        from ingot.kit import samples

        if self.prompts:
            return samples.written(self.prompts)
        return samples.held_out(given.one("data"), self.documents)

    def _masks(self, backend: Backend) -> Callable[[], Allowed] | None:
        if self.json_schema is None:
            return None
        from ingot.kit.constrained import Vocabulary
        from ingot.kit.schemas import Schema

        Schema(self.json_schema, "json_schema")  # what is no schema is refused before anything is asked
        return partial(Vocabulary(backend).json, self.json_schema, "json_schema")

    def _decoding(self) -> Decoding:
        from ingot.kit.generate import Decoding

        return Decoding(self.max_tokens, self.stop, self.temperature, self.top_p, self.seed)
