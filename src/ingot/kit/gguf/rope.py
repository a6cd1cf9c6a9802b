"""How positions are scaled: config.json's rules as GGUF fields and tensors.

The rules are those of transformers' ``modeling_rope_utils.py``; which field or tensor says them to llama.cpp is in its
converter (``set_gguf_parameters`` of ``TextModel``, ``generate_extra_tensors`` of Llama and Phi-3). A rule that
llama.cpp has no words for is refused (E-GGUF-ROPE): the file would open, and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.architectures.words import Architecture, Config, Sizes
from ingot.kit.gguf.writer import Field, f32, text, u32

#: The names of the tensors that say how positions are scaled.
ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})

#: Numbers of yarn: their names in config.json and below ``rope.scaling`` in a GGUF.
YARN_NUMBERS = (
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)


@dataclass(frozen=True)
class Rope:
    """The base of the rotation, that of layers with a window where they have their own, the rule and its numbers.

    ``original_context``: the positions before scaling, 0 where config.json does not say.
    """

    theta: float
    local_theta: float | None
    kind: str
    original_context: int
    numbers: Mapping[str, Any]


def rope_of(arch: Architecture, config: Config) -> Rope:
    """The rotation of a completed configuration. RefusedInput (E-GGUF-ROPE) if llama.cpp does not have its rule."""
    if not arch.scalings:
        return Rope(10000.0, None, "default", 0, {})
    stated: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    numbers: dict[str, Any] = dict(stated.get("full_attention", stated))
    local: dict[str, Any] = dict(stated.get("sliding_attention") or {})
    kind = str(numbers.get("rope_type", numbers.get("type", "default"))).lower()
    theta = float(numbers.get("rope_theta") or config.get("rope_theta") or 10000.0)
    local_theta = local.get("rope_theta")
    if kind not in arch.scalings:
        raise _refuse(arch, f"the rule {kind!r}", f"rules that llama.cpp has for it: {', '.join(arch.scalings)}")
    if local.get("rope_type", "default") != "default":
        raise _refuse(arch, f"the rule {local['rope_type']!r} in layers with a window", "there it has none")
    if not arch.partial and float(numbers.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refuse(arch, "a rotation of only a part of each head", "llama.cpp rotates whole heads here")
    for name in _NEEDS.get(kind, ()):
        if name not in numbers:
            raise _refuse(arch, f"the rule {kind!r} without its {name!r}", f"it needs: {', '.join(_NEEDS[kind])}")
    if "theta" not in arch.keys and theta != 10000.0:
        raise _refuse(arch, f"the base {theta:g}", "llama.cpp takes 10000, and has no field for another")
    _refuse_odd_yarn(arch, kind, numbers)
    original = numbers.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0
    return Rope(theta, None if local_theta is None else float(local_theta), kind, int(original), numbers)


_NEEDS = {
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}


def _refuse_odd_yarn(arch: Architecture, kind: str, numbers: Mapping[str, Any]) -> None:
    """llama.cpp derives yarn's attention factor from its scale, and rounds the range of dimensions outwards."""
    if kind != "yarn":
        return
    derived = 0.1 * math.log(numbers["factor"]) + 1.0 if numbers["factor"] > 1 else 1.0
    given = numbers.get("attention_factor")
    if given is not None and not math.isclose(given, derived, rel_tol=1e-6):
        raise _refuse(arch, f"the yarn attention factor {given}", f"llama.cpp takes the one that follows: {derived:g}")
    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        raise _refuse(arch, "yarn with mscale", "llama.cpp reads none for it")
    if numbers.get("truncate") is False:
        raise _refuse(arch, "yarn without truncation", "llama.cpp always rounds the range of dimensions")


def scaling_fields(arch: Architecture, rope: Rope) -> list[Field]:
    """The fields of the rule, in the reference's order; none for rules that are tensors (llama3, longrope)."""
    name, numbers = f"{arch.name}.rope.scaling", rope.numbers
    if rope.kind == "linear":
        return [text(f"{name}.type", "linear"), f32(f"{name}.factor", numbers["factor"])]
    if rope.kind != "yarn":
        return []
    fields = [
        text(f"{name}.type", "yarn"),
        f32(f"{name}.factor", numbers["factor"]),
        u32(f"{name}.original_context_length", numbers["original_max_position_embeddings"]),
    ]
    for stated, key in YARN_NUMBERS:
        if numbers.get(stated) is not None:
            fields.append(f32(f"{name}.{key}", numbers[stated]))
    return fields


def longrope_fields(arch: Architecture, rope: Rope, sizes: Sizes) -> list[Field]:
    """The factor on attention of longrope, which follows from how far the context was stretched.

    RefusedInput (E-GGUF-ROPE) for factors that are not one for each rotated pair, or another factor on attention.
    """
    if rope.kind != "longrope":
        return []
    for name in ("short_factor", "long_factor"):
        if len(rope.numbers[name]) != sizes.rotated // 2:
            raise _refuse(arch, f"{len(rope.numbers[name])} numbers of {name}", f"it has {sizes.rotated // 2} pairs")
    scale = sizes.context / rope.original_context
    if (stated := rope.numbers.get("factor")) is not None and not math.isclose(stated, scale, rel_tol=1e-6):
        raise _refuse(arch, f"the longrope factor {stated:g}", f"its context lengths give {scale:g}")
    factor = longrope_attention(sizes.context, rope.original_context)
    given = rope.numbers.get("attention_factor")
    if given is not None and not math.isclose(given, factor, rel_tol=1e-6):
        raise _refuse(arch, f"the longrope attention factor {given}", f"its sizes give {factor:g}")
    return [f32(f"{arch.name}.rope.scaling.attn_factor", factor)]


def longrope_attention(context: int, original: int) -> float:
    """The factor on attention of a context that was stretched from ``original`` positions."""
    return math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original else 1.0


def rope_tensors(rope: Rope, sizes: Sizes) -> dict[str, torch.Tensor]:
    """The tensors of the rule, which no checkpoint holds."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_divisors(rope.theta, rope.numbers, sizes.head)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(rope.numbers[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    return {}


def llama3_divisors(theta: float, numbers: Mapping[str, Any], head: int) -> torch.Tensor:
    """By what each of a head's frequencies is divided, in float32 throughout, as the reference computes it.

    Wavelengths over ``original / low`` are divided by ``factor``, those under ``original / high`` are kept, between
    them the inverse goes linearly from one to the other.
    """
    frequencies = 1.0 / (theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    wavelengths = 2 * math.pi / frequencies
    original, factor = numbers["original_max_position_embeddings"], float(numbers["factor"])
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    kept = wavelengths < original / high
    divided = wavelengths > original / low
    return torch.where(kept, torch.ones(()), torch.where(divided, torch.full((), factor), between))


def _refuse(arch: Architecture, what: str, fact: str) -> RefusedInput:
    return RefusedInput("E-GGUF-ROPE", f"{arch.model} scales its positions by {what}", facts=[fact])
