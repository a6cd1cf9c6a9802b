"""How models are asked for answers: the parameters of ``samples``, and of the tasks that compare what was said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ingot.core.stage import ELEMENT, Given, Hidden
from ingot.errors import RefusedInput
from ingot.stages._placed import Placed
from ingot.stages._task import read_evaluation

#: What the hidden samples of a task are called: ``REPORT.CANDIDATE.TASK.samples``.
SAMPLES = "samples"

_Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class Asked(Placed):
    """Which prompts a model answers, and how."""

    documents: int = Field(
        default=20, ge=1, le=100_000, description="held-out prompts to answer, the first in content order"
    )
    prompts: tuple[_Text, ...] = Field(
        default=(),
        description="prompts to answer instead of held-out ones; a model with a chat template is asked by it",
    )
    max_tokens: int = Field(default=128, ge=1, le=131072, description="tokens after which an answer is cut")
    context: int = Field(
        default=2048, ge=8, le=1 << 20, description="tokens of a prompt and its answer; longer prompts are refused"
    )
    stop: tuple[_Text, ...] = Field(default=(), description="texts before which an answer ends")
    temperature: float = Field(
        default=0.0, ge=0, le=10, description="of sampling; 0 takes the likeliest token each time"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that have this share together"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="of sampling; each prompt has its own draws from it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what Hugging Face models compute in"
    )

    json_schema: dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="JSON schema that each answer is held to: nothing else can be said; null leaves answers free",
    )

    @field_validator("prompts")
    @classmethod
    def _each_once(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(prompts)) < len(prompts):
            raise ValueError("a prompt is named twice")
        return prompts

    def prompted(self, roles: frozenset[str], name: str = "prompts") -> Iterator[tuple[str, str]]:
        """What is wrong with where the prompts come from: one place; ``name`` is that of the parameter."""
        if self.prompts and "data" in roles:
            yield "data", "the prompts are those of the spec, so no data set is read"
        if not self.prompts and "data" not in roles:
            yield "data", f"without {name!r} the held-out prompts of a data set are answered"


def asked(per: tuple[str, ...], into: str | None, params: object, name: str, place: tuple[str, ...]) -> Hidden:
    """The hidden ``samples`` of each element of ``per``; ``params`` as they are written."""
    written: Mapping[str, Any] = params if isinstance(params, Mapping) else {}  # anything else is refused elsewhere
    roles = {"candidate": ELEMENT} | ({} if written.get("prompts") else {"data": "data"})
    return Hidden("samples", per, roles, into, written, name, place=place)


def said_by(given: Given, role: str, model: str) -> dict[str, Any]:
    """The evaluation of samples. RefusedInput (E-SAMPLES-OTHER) where another model said them."""
    told = read_evaluation(given.one(role))
    wanted = given.digests[model][0]
    if told["kind"] != "samples" or told["candidate"] != wanted:
        raise RefusedInput(
            "E-SAMPLES-OTHER",
            f"the samples in the role {role!r} are not those of the {model}",
            facts=[f"said by {told['candidate'][:12]}, the {model} is {wanted[:12]}"],
        )
    return told
