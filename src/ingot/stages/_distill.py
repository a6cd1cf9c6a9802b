"""What kinds share that may learn from a teacher: its role, the parameter ``distill``, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from ingot.core.stage import Frozen, Least, Measure, Role
from ingot.stages._shape import SIZES

TEACHER = Role(accepts=("hf",), optional=True)

#: What those kinds measure beside what every training does.
MEASURES = (
    Measure("teacher_kl_before", "nats/token", "with a teacher and held-out documents"),
    Measure("teacher_kl_after", "nats/token", "with a teacher and held-out documents"),
    Measure("teacher_kl_change", "nats/token", "with a teacher and held-out documents"),
)


class Distill(Frozen):
    """How much is learned from the teacher, and what of it."""

    temperature: float = Field(
        default=2.0, gt=0, le=100, description="Divides the logits of both: above 1 the unlikely tokens count for more"
    )
    weight: float = Field(
        default=0.5, ge=0, le=1, description="Share of the teacher's distribution in the loss; the rest is the text's"
    )
    hidden_weight: float = Field(
        default=0.0, ge=0, description="Weight of the distance between hidden states, layer by layer; 0: not compared"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Of the teacher's weights, in which it computes"
    )


def misfits(distill: Distill, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
    """A way of learning from a teacher that there is not."""
    if distill != Distill() and "teacher" not in roles:
        yield "distill", "says how to learn from a teacher, and the role 'teacher' is not filled"


def least_memory(distill: Distill, inputs: Mapping[str, Least], each: int) -> int:
    """A model with ``each`` bytes for a weight, and a teacher beside it; see ``Stage``."""
    model, teacher = (inputs.get(role, Least()).stored(16).weights for role in ("model", "teacher"))
    return model * each + teacher * SIZES[distill.dtype]
