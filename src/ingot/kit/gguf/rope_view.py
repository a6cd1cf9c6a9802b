"""How a GGUF scales positions, as the entries of config.json that say the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.architectures.words import Architecture, Sizes
from ingot.kit.gguf.reader import Gguf
from ingot.kit.gguf.rope import YARN_NUMBERS, llama3_divisors, longrope_attention


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def rope_entries(arch: Architecture, gguf: Gguf, sizes: Sizes) -> dict[str, Any]:
    """The rotation's entries of config.json. RefusedInput (E-GGUF-ROPE) for a rule without a Hugging Face form."""
    if not arch.scalings:
        return {}
    theta = _number(arch, gguf, "rope.freq_base", 10000.0)
    rule = {"rope_theta": theta, **_rule(arch, gguf, sizes, theta)}
    if "local_theta" in arch.keys:
        local = {"rope_type": "default", "rope_theta": _number(arch, gguf, "rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": rule, "sliding_attention": local}}
    entries: dict[str, Any] = {"rope_theta": theta, "rope_parameters": rule}
    if arch.partial:
        rotated = _number(arch, gguf, "rope.dimension_count", sizes.head)
        rule["partial_rotary_factor"] = rotated / sizes.head
    if "original_context" in arch.keys:
        original = int(_number(arch, gguf, "rope.scaling.original_context_length", sizes.context))
        entries["original_max_position_embeddings"] = original
    return entries


def _number(arch: Architecture, gguf: Gguf, key: str, default: float) -> Any:
    value = gguf.metadata.get(f"{arch.name}.{key}", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise RefusedInput("E-GGUF-KEY", f"{gguf.path.name}: {arch.name}.{key} is {value!r}, not a positive number")
    return shortest(value) if isinstance(value, float) else value


def _rule(arch: Architecture, gguf: Gguf, sizes: Sizes, theta: float) -> dict[str, Any]:
    """The rule and its numbers; those of rules that are tensors from the tensors."""
    kind = gguf.metadata.get(f"{arch.name}.rope.scaling.type", "none")
    tensors = {info.name: torch.from_numpy(gguf.dequantized(info)) for info in gguf.tensors if "rope_f" in info.name}
    if kind == "none" and not tensors:
        return {"rope_type": "default"}
    if kind == "none" and set(tensors) == {"rope_freqs.weight"} and "llama3" in arch.scalings:
        return _llama3(tensors["rope_freqs.weight"], theta, sizes.head)
    if "longrope" in arch.scalings and len(tensors) == 2 and "rope_freqs.weight" not in tensors:
        return _longrope(arch, gguf, sizes, tensors)
    if kind in {"linear", "yarn"} and kind in arch.scalings and not tensors:
        rule: dict[str, Any] = {"rope_type": kind, "factor": _number(arch, gguf, "rope.scaling.factor", 1.0)}
        if kind == "yarn":
            rule["original_max_position_embeddings"] = _number(
                arch, gguf, "rope.scaling.original_context_length", sizes.context
            )
            for name, key in YARN_NUMBERS:
                if f"{arch.name}.rope.scaling.{key}" in gguf.metadata:
                    rule[name] = _number(arch, gguf, f"rope.scaling.{key}", 1.0)
        return rule
    raise RefusedInput("E-GGUF-ROPE", f"{gguf.path.name} scales its positions by the rule {kind!r}")


def _longrope(arch: Architecture, gguf: Gguf, sizes: Sizes, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    original = int(_number(arch, gguf, "rope.scaling.original_context_length", sizes.context))
    factor = _number(arch, gguf, "rope.scaling.attn_factor", 1.0)
    derived = longrope_attention(sizes.context, original)
    if not math.isclose(factor, derived, rel_tol=1e-5):
        raise RefusedInput("E-GGUF-ROPE", f"the GGUF scales attention by {factor:g}, its lengths give {derived:g}")
    lists = {
        f"{length}_factor": [shortest(value) for value in tensors[f"rope_factors_{length}.weight"].tolist()]
        for length in ("short", "long")
    }
    return {"rope_type": "longrope", "original_max_position_embeddings": original, **lists}


def _llama3(factors: torch.Tensor, theta: float, head: int) -> dict[str, Any]:
    """Llama 3.1's scaling from the per-frequency factors that the GGUF keeps instead of its parameters.

    The published models use low 1, high 4, original length 8192 and a factor of 8 or 32. The factors are computed
    from these again, then from other powers of two as the length; ones that none gives are refused (E-GGUF-ROPE).
    """
    for original in (8192, *(2**power for power in range(5, 21))):
        rule: dict[str, Any] = {
            "rope_type": "llama3",
            "factor": shortest(float(factors.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        expected = llama3_divisors(theta, rule, head)
        if factors.shape == expected.shape and torch.allclose(factors, expected, rtol=1e-4, atol=0):
            return rule
    raise RefusedInput("E-GGUF-ROPE", "the GGUF scales its positions unlike any published Llama 3")
