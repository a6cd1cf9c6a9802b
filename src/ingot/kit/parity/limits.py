"""How far an export may be from its source before it is another model: one table, by how weights and numbers are kept.

Two questions are asked, and each has limits of its own. *Execution*: does the export compute what its own weights say?
It is asked with the weights that the export holds, dequantized, in the source's modules; the limits are those of the
type that the runtime computes in, and are tight. *Loss*: what did storing the weights in fewer bits cost? It is asked
with the source's own weights; the limits are those of the stored type, and only tell a model from a broken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """What is still the same model.

    ``cosine``: the lowest of any position's logits; ``top1``: the share of positions with the same likeliest token;
    ``kl``: the mean of KL(source‖export) in nats a token; ``max_difference``: of any logit, None where unbounded.
    ``tie``: logits this close, as a share of the row's largest magnitude, are equal in the type they are given in.
    ``layer``: what one layer may make of its input otherwise, as a share of its output's norm: beyond it, it is wrong.
    """

    cosine: float
    top1: float
    kl: float
    layer: float
    tie: float = 2.0**-10
    max_difference: float | None = None

    def but(self, **given: float | None) -> Limits:
        """These, with what is given (not None) in place of the defaults."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


#: Numbers that are kept as they are, in the type that computes (execution, and all that there is for such exports).
_COMPUTED: Mapping[str, Limits] = {
    # sums in another order, 24 bits: 1e-6 a layer; two orders of magnitude are left for deep models
    "float32": Limits(cosine=0.99999, top1=0.995, kl=1e-5, layer=1e-3, tie=2.0**-20),
    # 11 bits: 5e-4 an operation, which add up over a layer's ten or so and over the layers like a random walk
    "float16": Limits(cosine=0.999, top1=0.97, kl=5e-3, layer=2e-2),
    # 8 bits: eight times as coarse as float16
    "bfloat16": Limits(cosine=0.995, top1=0.93, kl=2e-2, layer=1e-1, tie=2.0**-7),
}

#: Weights in fewer bits than they had (loss).
_STORED: Mapping[str, Limits] = {
    # a 127th of the largest weight of a row: a relative error of about 1 % a matrix
    "int8": Limits(cosine=0.99, top1=0.9, kl=3e-2, layer=1e-1),
    # inputs, too, and with one scale for all tokens of a call: a single large one leaves few steps to the others
    "int8_dynamic": Limits(cosine=0.85, top1=0.5, kl=1.0, layer=4e-1),
    # a 7th of the largest weight of a block of 32: about 8 % a matrix
    "int4": Limits(cosine=0.85, top1=0.5, kl=1.0, layer=4e-1),
    # 2^bits values for a whole matrix, placed where its weights are
    "palettized8": Limits(cosine=0.99, top1=0.9, kl=3e-2, layer=1e-1),
    "palettized6": Limits(cosine=0.95, top1=0.8, kl=2e-1, layer=2e-1),
    "palettized4": Limits(cosine=0.8, top1=0.4, kl=1.5, layer=5e-1),
}

LIMITS: Mapping[str, Limits] = {**_COMPUTED, **_STORED}
