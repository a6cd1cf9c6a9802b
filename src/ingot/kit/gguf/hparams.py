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


def sizes_of(arch: Architecture, config: Config) -> Sizes:
    """The sizes in a configuration. RefusedInput (E-GGUF-ARCH) for one that is missing, odd or does not divide."""
    names = arch.hf_keys

    def size(key: str, default: Any = None) -> int:
        value = config.get(names.get(key, ""), default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise RefusedInput("E-GGUF-ARCH", f"config.json: {names.get(key, key)} is {value!r}, not a size")
        return value

    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = size("attention.head_count_kv", heads)
    head = size("attention.key_length", config.get("head_dim") or hidden // heads)
    if heads % kv_heads or head % 2:
        raise RefusedInput(
            "E-GGUF-ARCH",
            "config.json: heads do not divide into key-value heads, or the head size is odd",
            facts=[f"{heads} heads, {kv_heads} key-value heads, head size {head}"],
        )
    return Sizes(
        layers=size("block_count"),
        hidden=hidden,
        wide=size("feed_forward_length", 4 * hidden),
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        vocabulary=_positive(config, "vocab_size"),
        context=size("context_length"),
    )


def _positive(config: Config, name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise RefusedInput("E-GGUF-ARCH", f"config.json: {name} is {value!r}, not a size")
    return value
