"""``match``: a model's answers against the answers of the data set: exactly, by ROUGE-L and by BLEU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ingot.core.stage import ELEMENT, Given, Hidden, Keyless, Measure, Metrics, Progress, Role
from ingot.stages._samples import SAMPLES, Asked, asked, said_by
from ingot.stages._task import MODELS, Found, Task, write_evaluation


class Match(Task):
    """Compares what a candidate answers to held-out prompts with what the rows say."""

    kind: ClassVar[str] = "match"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(MODELS),
        "data": Role(("dataset",)),
        "samples": Role(("samples",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("numpy", "rouge-score", "sacrebleu")
    extra: ClassVar[str | None] = "all"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("exact_match", "1"),
        Measure("rouge_l", "1", "where every row has a word of a-z or 0-9"),
        Measure("bleu", "%"),
    )

    # What was asked is in the key of the samples, which are read.
    samples: Annotated[Asked, Keyless()] = Field(
        default_factory=Asked, description="how models are asked: the parameters of `samples`, without prompts"
    )
    normalization: Literal["space", "words"] = Field(
        default="space",
        description="what an exact match overlooks: white space, or with `words` also capitals and punctuation",
    )
    stem: bool = Field(default=False, description="compare the stems of English words in ROUGE-L")
    bleu_tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        default="13a", description="sacrebleu's tokenizer"
    )
    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="bootstrap resamples of the answers behind each 95 % interval"
    )

    @field_validator("samples")
    @classmethod
    def _of_rows(cls, samples: Asked) -> Asked:
        if samples.prompts:
            raise ValueError("answers are compared with those of held-out rows, so there are no 'prompts'")
        return samples

    @classmethod
    def implied(cls, name: str, params: Mapping[str, object]) -> tuple[Hidden, ...]:
        """The samples of each candidate, and what they are compared to."""
        place = ("tasks", name)
        said = asked(cls.per, None, params.get(SAMPLES), f"{name}.{SAMPLES}", (*place, SAMPLES))
        roles = {"candidate": ELEMENT, "data": "data", SAMPLES: f"{said.name}:*"}
        return (said, Hidden(cls.kind, cls.per, roles, "evaluations", params, name, place=place))

    def hidden(self) -> tuple[Hidden, ...]:
        """The samples of the candidate, where the target is written as such."""
        params = self.samples.model_dump(mode="json")
        return (asked(("candidate",), SAMPLES, params, SAMPLES, (SAMPLES,)),)

    def settings(self) -> dict[str, Any]:
        """The parameters as plain data; how the models were asked is told by the samples."""
        return self.model_dump(mode="json", exclude={SAMPLES})

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Compare every answer; writes items.jsonl and evaluation.json."""
        from ingot.kit import match, samples
        from ingot.kit.chat import read_rows

        told = said_by(given, SAMPLES, "candidate")
        found = samples.read(given.one(SAMPLES))
        matched = samples.matched(found, list(read_rows(given.one("data"), "eval")))
        pairs = [(item.answer, wanted) for item, wanted in matched]
        progress.phase("compare")
        items = match.match([item.id for item in found], pairs, self.normalization, stem=self.stem)
        progress(len(items), len(items), "answers")
        match.write(out / "items.jsonl", items)
        metrics, missing = match.metrics(
            items, pairs, how=self.normalization, tokenize=self.bleu_tokenize, resamples=self.resamples
        )
        settings = {**self.settings(), SAMPLES: told["settings"]}
        measured = Found(told["container"], told["precision"], metrics, missing)
        write_evaluation(self.kind, settings, given, out, measured)
        return metrics
