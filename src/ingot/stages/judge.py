"""``judge``: whether a candidate's answers are better than the reference's, pair by pair, in both orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import (
    ELEMENT,
    Done,
    Frozen,
    Given,
    Hidden,
    Keyless,
    Measure,
    Progress,
    Reproducibility,
    Role,
)
from ingot.errors import RefusedInput
from ingot.stages._placed import Placed
from ingot.stages._samples import SAMPLES, Asked, asked, said_by
from ingot.stages._task import MODELS, Found, Task, write_evaluation

if TYPE_CHECKING:
    from ingot.kit.judge.pairs import Judged, Pair, Verdict

#: The role that holds what the reference answered.
_THEIRS = "reference_samples"
_Word = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^\S+$")]

TEMPLATE = """\
You compare two answers to the same request.

{criteria}

Request:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Say A or B, or C if neither is better.
Verdict:"""


class Verdicts(Frozen):
    """What the judge says for each verdict."""

    first: _Word = Field(default="A", description="the answer shown first is better")
    second: _Word = Field(default="B", description="the answer shown second is better")
    tie: _Word | None = Field(default="C", description="neither is; null: the judge must choose one")

    def words(self) -> dict[Verdict, str]:
        """The words by what they mean."""
        words: dict[Verdict, str] = {"first": self.first, "second": self.second}
        return words if self.tie is None else {**words, "tie": self.tie}

    @model_validator(mode="after")
    def _apart(self) -> Verdicts:
        words = list(self.words().values())
        if any(other.startswith(word) for word in words for other in words if other is not word):
            raise ValueError("no verdict may be the beginning of another one")
        return self


class Judge(Placed, Task):
    """Win, tie and loss of a candidate against the reference, as a local model or judgements made elsewhere say."""

    kind: ClassVar[str] = "judge"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {
        "candidate": Role(MODELS),
        "reference": Role(MODELS),
        SAMPLES: Role(("samples",)),
        _THEIRS: Role(("samples",)),
        "data": Role(("dataset",), optional=True),
        "judge": Role(("hf", "gguf"), optional=True),
        "judgements": Role(("dataset",), optional=True),
    }
    per: ClassVar[tuple[str, ...]] = ("candidates",)
    besides: ClassVar[str] = "reference"
    tools: ClassVar[tuple[str, ...]] = (
        "compressed-tensors", "gguf", "jinja2", "llama-cpp-python", "numpy", "safetensors", "torch", "transformers",
    )  # fmt: skip
    extra: ClassVar[str | None] = "all"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("pairs", "pairs"),
        Measure("win_rate", "1"),
        Measure("tie_rate", "1"),
        Measure("loss_rate", "1"),
        Measure("agreement", "1", "where two answers differ"),
        Measure("agreement_kappa", "1", "where two answers differ and not all verdicts are the same"),
        Measure("position_bias", "1", "where two answers differ"),
    )

    # What was asked is in the key of the samples, which are read.
    samples: Annotated[Asked, Keyless()] = Field(
        default_factory=Asked, description="how both models are asked: the parameters of `samples`"
    )
    criteria: str = Field(
        default="The better answer does what the request asks, is correct and says no more than is needed.",
        max_length=10_000,
        description="what makes an answer the better one",
    )
    template: str = Field(
        default=TEMPLATE,
        max_length=20_000,
        description="what the judge is asked, with {criteria}, {prompt}, {first} and {second}; it names the verdicts",
    )
    verdicts: Verdicts = Field(default_factory=Verdicts, description="what the judge says for each verdict")
    context: int = Field(default=4096, ge=8, le=1 << 20, description="tokens of a question that the judge reads")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what a Hugging Face judge computes in"
    )
    resamples: Annotated[int, Field(ge=1000, le=100_000)] = Field(
        default=2000, description="bootstrap resamples of the pairs behind each 95 % interval that is not Wilson's"
    )

    @model_validator(mode="after")
    def _whole(self) -> Judge:
        needed = ("{prompt}", "{first}", "{second}", *(["{criteria}"] if self.criteria else []))
        missing = [name for name in needed if name not in self.template]
        if missing:
            raise ValueError(f"'template' has no {' and no '.join(missing)}")
        unnamed = [word for word in self.verdicts.words().values() if word not in self.template]
        if unnamed:
            raise ValueError(f"'template' does not name the verdict {' and '.join(map(repr, unnamed))}")
        return self

    @classmethod
    def implied(cls, name: str, params: Mapping[str, object]) -> tuple[Hidden, ...]:
        """The samples of every candidate and of the reference, and the judgement of each candidate."""
        place = ("tasks", name)
        said = asked(Task.per, None, params.get(SAMPLES), f"{name}.{SAMPLES}", (*place, SAMPLES))
        roles = {
            "candidate": ELEMENT,
            "reference": "reference",
            SAMPLES: f"{said.name}:*",
            _THEIRS: f"{said.name}:reference",
            "judge": "judge",
            "judgements": "judgements",
            **{role: source for role, source in said.roles.items() if role == "data"},
        }
        return (said, Hidden(cls.kind, cls.per, roles, "evaluations", params, name, cls.besides, place))

    @classmethod
    def lacks(cls, name: str, params: Mapping[str, object], roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Also somebody who judges."""
        yield from super().lacks(name, params, roles)
        yield from judges(roles)

    def hidden(self) -> tuple[Hidden, ...]:
        """The samples of both, where the target is written as such."""
        params = self.samples.model_dump(mode="json")
        return tuple(
            asked((role,), into, params, SAMPLES, (SAMPLES,))
            for role, into in (("candidate", SAMPLES), ("reference", _THEIRS))
        )

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """One judge, and prompts from one place."""
        yield from judges(roles)
        yield from self.samples.prompted(roles, "samples.prompts")

    def settings(self) -> dict[str, Any]:
        """The parameters as plain data; how the models were asked is told by the samples."""
        return self.model_dump(mode="json", exclude={SAMPLES})

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Judge every pair; writes judgements.jsonl, pairs.jsonl and evaluation.json."""
        from ingot.kit import samples
        from ingot.kit.judge import metrics as measure
        from ingot.kit.judge import pairs

        told, theirs = said_by(given, SAMPLES, "candidate"), said_by(given, _THEIRS, "reference")
        if (told["settings"], told["data"]) != (theirs["settings"], theirs["data"]):
            raise RefusedInput("E-JUDGE-PAIRS", "the candidate and the reference were not asked alike")
        found = pairs.pairs(samples.read(given.one(SAMPLES)), samples.read(given.one(_THEIRS)))
        judged, by, notes = self._judged(found, given, progress)
        pairs.write(out, judged)
        metrics, missing = measure.metrics(judged, by, self.resamples) if by else ({}, self._itself())
        settings = {**self.settings(), SAMPLES: told["settings"]}
        for role in ("judge", "judgements"):
            settings[role] = next(iter(given.digests.get(role, ())), None)
        measured = Found(told["container"], told["precision"], metrics, missing)
        write_evaluation(self.kind, settings, given, out, measured)
        return Done(metrics, notes=notes)

    def _judged(
        self, found: list[Pair], given: Given, progress: Progress
    ) -> tuple[list[Judged], str, dict[str, object]]:
        """The judgements, in words whose they are, and what a receipt notes of it.

        There are none where nobody but the candidate could judge.
        """
        folder = given.maybe("judgements")
        if folder is not None:
            from ingot.kit.judge import pairs

            progress.phase("compare")
            return pairs.given(folder, found), "judgements made elsewhere", {}
        judge, candidate, reference = (given.digests.get(role) for role in ("judge", "candidate", "reference"))
        if not judge or judge == candidate:  # ingot fills no role of a hidden target with its own element
            return [], "", {}
        from ingot.kit.judge.ask import Questions, ask

        backend = self.opened(given.one("judge"), given, progress, dtype=self.dtype, context=self.context)
        progress.phase("judge")
        questions = Questions(self.template, self.criteria, self.verdicts.words())
        by = f"a {backend.container} model judges" if judge != reference else "the reference itself judges"
        return ask(backend, questions, found, self.context, progress), by, self.where(backend)

    def _itself(self) -> dict[str, str]:
        return {
            measure.metric: "the candidate is the judge, and none judges its own answers" for measure in self.measures
        }


def judges(roles: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with who judges."""
    if {"judge", "judgements"} <= roles:
        yield "judgements", "either a model judges, or judgements made elsewhere are read"
    if not {"judge", "judgements"} & roles:
        yield "judge", "nobody judges: a model in the role 'judge', or judgements made elsewhere in 'judgements'"
