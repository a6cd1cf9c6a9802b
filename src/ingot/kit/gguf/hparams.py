"""config.json as transformers completes it, and the sizes in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.gguf.architectures.words import Architecture, Config, Sizes


def completed(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with transformers' defaults, in transformers' present words.

    The reference converter reads it so; what a config.json leaves out means what transformers takes it for.
    RefusedInput (E-GGUF-ARCH) for one that transformers does not take.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    stated = {name: value for name, value in config.items() if name != "model_type"}
    try:
        return dict(CONFIG_MAPPING[arch.model_type].from_dict(stated).to_dict())
    except (StrictDataclassError, TypeError, ValueError, KeyError, ArithmeticError, AttributeError) as error:
        raise RefusedInput(
            "E-GGUF-ARCH",
            f"config.json lacks a size of {arch.model} or holds one that is no number",
            facts=[" ".join(str(error).split())[:300]],
        ) from error


def sizes_of(arch: Architecture, config: Config, code: str = "E-GGUF-ARCH", where: str = "config.json") -> Sizes:
    """The sizes in a configuration. RefusedInput (``code``) for one that is missing, odd or does not divide."""
    names = arch.hf_keys

    def size(name: str) -> int:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise RefusedInput(code, f"{where}: {name} is {value!r}, not a size")
        return value

    hidden, heads = size(names["embedding_length"]), size(names["attention.head_count"])
    kv_heads = size(kv) if (kv := names.get("attention.head_count_kv")) else heads
    head = size("head_dim") if config.get("head_dim") else hidden // heads
    if heads % kv_heads or head % 2 or not head:
        raise RefusedInput(
            code,
            f"{where}: heads do not divide into key-value heads, or the head size is odd",
            facts=[f"{heads} heads, {kv_heads} key-value heads, head size {head}"],
        )
    wide = names["feed_forward_length"]
    return Sizes(
        layers=size(names["block_count"]),
        hidden=hidden,
        wide=4 * hidden if config.get(wide) is None else size(wide),
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        rotated=int(_partial(config) * hidden) // heads if arch.partial else head,
        vocabulary=size("vocab_size"),
        context=size(names["context_length"]),
    )


def _partial(config: Config) -> float:
    """The rotated part of a head, as the reference converter finds it for Phi-3."""
    stated: Mapping[str, Any] = config.get("rope_parameters") or {}
    return float(stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
