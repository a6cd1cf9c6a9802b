"""What all kinds that export share: how an export is proven equal to its source, and what is measured of that.

A kind gives its fields ``parity`` and its roles ``DATA``, lists ``PARITY_MEASURES`` among its measures, and in ``run``
hands what it saved to ``kit.parity`` (its ``prove`` module shows how).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ingot.core.stage import Frozen, Measure, Role

if TYPE_CHECKING:
    from ingot.kit.parity.limits import Limits

#: The role that golden texts come from: the held-out rows of a data set.
DATA = Role(accepts=("dataset",), optional=True)

PARITY_MEASURES = (
    Measure("parity_cosine", "1"),
    Measure("parity_max_difference", "1"),
    Measure("parity_top1_agreement", "1"),
    Measure("parity_kl", "nats/token"),
    Measure("parity_tokens", "tokens"),
    Measure("parity_texts", "1"),
)
#: Of exports whose weights are stored in fewer bits than they had: against the weights that are stored.
EXECUTION_MEASURES = (
    Measure("execution_cosine", "1", "with quantized weights"),
    Measure("execution_max_difference", "1", "as execution_cosine"),
    Measure("execution_top1_agreement", "1", "as execution_cosine"),
    Measure("execution_kl", "nats/token", "as execution_cosine"),
)
TOKENIZER_MEASURE = Measure("tokenizer_texts", "1")

Share = Annotated[float, Field(ge=0, le=1)]


class Parity(Frozen):
    """On how many texts an export is compared with its source, and how far apart the two may be."""

    texts: int = Field(default=4, ge=1, le=64, description="golden texts, from one token to max_length")
    max_length: int = Field(default=128, ge=1, le=32768, description="tokens of the longest golden text")
    cosine: Share | None = Field(
        default=None, description="lowest cosine similarity of a position's logits; null: by precision"
    )
    max_difference: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="largest difference of a logit; null: unbounded"
    )
    top1: Share | None = Field(
        default=None,
        description="least share of positions with the same likeliest token; null: as cosine",
    )
    kl: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="mean KL(source‖export) in nats a token; null: as cosine"
    )

    def limits(self, precision: str) -> Limits:
        """The limits of a precision (a name of ``kit.parity.limits``), with those that are given in their place."""
        from ingot.kit.parity.limits import LIMITS

        given = {"cosine": self.cosine, "top1": self.top1, "kl": self.kl, "max_difference": self.max_difference}
        return LIMITS[precision].but(**given)
