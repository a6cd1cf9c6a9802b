"""The parameter ``distill`` of the kinds that may learn from a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ingot.core.stage import Frozen


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
