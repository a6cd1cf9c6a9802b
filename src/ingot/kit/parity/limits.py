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


def _each(names: str, limits: Limits) -> dict[str, Limits]:
    return dict.fromkeys(names.split(), limits)


#: Numbers that are kept as they are, in the type that computes: execution, and all that there is for such exports.
_COMPUTED: Mapping[str, Limits] = {
    # sums in another order, 24 bits: 1e-6 a layer; two orders of magnitude are left for deep models
    "float32": Limits(cosine=0.99999, top1=0.995, kl=1e-5, layer=1e-3, tie=2.0**-20),
    # 11 bits: 5e-4 an operation, which add up over a layer's ten or so and over the layers like a random walk
    "float16": Limits(cosine=0.999, top1=0.97, kl=5e-3, layer=2e-2),
    # 8 bits: eight times as coarse as float16
    "bfloat16": Limits(cosine=0.995, top1=0.93, kl=2e-2, layer=1e-1, tie=2.0**-7),
}

# What follows was measured on a model of 260 K parameters and on SmolLM2-135M (docs/parity.md has the figures); limits
# are three to five times the worse one's KL and own difference of a layer.

#: Weights in fewer bits than they had, whatever runs them (loss).
_STORED: Mapping[str, Limits] = {
    # a 127th of the largest weight of a row: 1 % to 3 % a layer; embeddings in int8, too, gave a cosine of 0.967
    "int8": Limits(cosine=0.95, top1=0.9, kl=3e-2, layer=1e-1),
    # inputs, too, and with one scale for all tokens of a call: a single large one leaves few steps to the others
    "int8_dynamic": Limits(cosine=0.1, top1=0.35, kl=2.0, layer=6e-1),
    # a 7th of the largest weight of a block of 32: 13 % to 25 % a layer
    "int4": Limits(cosine=0.1, top1=0.35, kl=2.0, layer=6e-1),
    # 2^bits values for a whole matrix, placed where its weights are: 6 %, 12 %, 27 % a layer
    "palettized8": Limits(cosine=0.95, top1=0.75, kl=5e-2, layer=2e-1),
    "palettized6": Limits(cosine=0.5, top1=0.6, kl=4e-1, layer=4e-1),
    "palettized4": Limits(cosine=0.1, top1=0.3, kl=2.0, layer=8e-1),
}

#: What llama.cpp does on a CPU to a file's own weights (execution): it rounds the inputs of products to 8 bits, in
#: blocks of 32 or 256, and keeps keys and values in F16. 1 % to 5 % a layer, whatever the type.
_LLAMA_CPP = Limits(cosine=0.8, top1=0.85, kl=1e-1, layer=0.15)

#: GGUF files by their coarsest type (loss).
_GGUF: Mapping[str, Limits] = {
    # keys and values in F16 are what is between F32 and its source
    **_each("F32 F16", _COMPUTED["float16"]),
    "BF16": _COMPUTED["bfloat16"],
    # 1 % to 3 % a layer, to which llama.cpp adds as much
    "Q8_0": Limits(cosine=0.9, top1=0.9, kl=3e-2, layer=0.15),
    # 5 % to 9 % a layer
    **_each("Q6_K Q5_K Q5_K_S Q5_K_M Q5_0 Q5_1", Limits(cosine=0.5, top1=0.65, kl=3e-1, layer=0.3)),
    # 10 % to 25 % a layer
    **_each("Q4_K Q4_K_S Q4_K_M Q4_0 Q4_1 IQ4_NL IQ4_XS MXFP4", Limits(cosine=0.1, top1=0.4, kl=1.5, layer=0.6)),
    # not measured where their rows allow them: 4 bits, doubled
    **_each("Q3_K Q3_K_S Q3_K_M Q3_K_L IQ3_XXS IQ3_XS IQ3_S IQ3_M", Limits(cosine=0, top1=0.25, kl=3.0, layer=0.9)),
    # such files can be near to useless and still be what was asked for: no more than a model by chance is excluded
    **_each(
        "Q2_K Q2_K_S IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M TQ1_0 TQ2_0",
        Limits(cosine=-1, top1=0.02, kl=8.0, layer=1.5),
    ),
}

LIMITS: Mapping[str, Limits] = {**_COMPUTED, **_STORED, "llama.cpp": _LLAMA_CPP, **_GGUF}


def table() -> str:
    """The limits as ``docs/parity.md`` shows them: names with equal ones share a line."""
    lines = ["| | cosine | same likeliest | KL | a layer |", "|---|---|---|---|---|"]
    for limits in dict.fromkeys(LIMITS.values()):
        names = ", ".join(f"`{name}`" for name, found in LIMITS.items() if found == limits)
        numbers = f"{limits.cosine:g} | {limits.top1:.1%} | {limits.kl:g} | {limits.layer:.1%}"
        lines.append(f"| {names} | {numbers} |")
    return "\n".join(lines) + "\n"
