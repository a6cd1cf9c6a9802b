"""What follows from a model's config.json by arithmetic: its weights, and what its keys and values take.

Only of architectures whose every layer keeps the keys and values of every token (up to the window, where there is one:
``context`` ends there). Of others nothing is said rather than something wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json
from ingot.core.files import read_regular

#: By transformers' names: those that ingot's own decoder computes (``kit.decoder.shape``).
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_MAX_BYTES = 1 << 20
#: No size of a model is larger; a config that says so is no model's.
_LARGEST = 1 << 31


@dataclass(frozen=True)
class ModelShape:
    """``weights`` at the least (without biases and norms of heads), ``cache`` numbers of keys and values a token."""

    weights: int
    cache: int
    context: int


def model_shape(folder: Path) -> ModelShape | None:
    """The shape of a Hugging Face folder; None where there is none, or it is none of those that are known here."""
    try:
        config: Any = read_json(read_regular(folder / "config.json", _MAX_BYTES))
        return _shape(config) if config["architectures"] in ([name] for name in ARCHITECTURES) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _shape(config: Mapping[str, Any]) -> ModelShape:
    layers, width, inner = (_size(config[name]) for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    heads, rows = _size(config["num_attention_heads"]), _size(config["vocab_size"])
    pairs = _size(config.get("num_key_value_heads") or heads)
    head = _size(config.get("head_dim") or width // heads)
    block = 2 * width * heads * head + 2 * width * pairs * head + 3 * width * inner + 2 * width
    ends = rows * width * (1 if config.get("tie_word_embeddings") else 2)
    context = min(_size(config.get("max_position_embeddings", 2048)), _window(config))
    return ModelShape(layers * block + width + ends, 2 * layers * pairs * head, context)


def _size(value: object) -> int:
    if type(value) is not int or not 0 < value < _LARGEST:
        raise ValueError(f"no size: {value}")
    return value


def _window(config: Mapping[str, Any]) -> int:
    """Mistral has a window unless it is null, Qwen where it says that it uses it."""
    used = config["architectures"] == ["MistralForCausalLM"] or config.get("use_sliding_window")
    window = config.get("sliding_window")
    return _size(window) if used and window else _LARGEST
