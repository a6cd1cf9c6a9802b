"""The shape of a decoder as its config.json states it, with transformers' defaults for what is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.errors import RefusedInput

#: The architectures that the decoder of this package computes, by transformers' names.
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, kind (default, linear or llama3) and the numbers of that kind."""

    theta: float
    kind: str
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192

    def divisors(self, head_dim: int) -> list[float] | None:
        """By what each of the ``head_dim / 2`` frequencies is divided; None where all are 1.

        llama3: wavelengths over ``original_context / low`` are divided by ``factor``, those under
        ``original_context / high`` are kept, between them the inverse goes linearly from one to the other
        (Llama 3.1's model card and transformers' ``_compute_llama3_parameters``).
        """
        if self.kind == "default":
            return None
        if self.kind == "linear":
            return [self.factor] * (head_dim // 2)
        divisors = []
        for index in range(head_dim // 2):
            wavelength = 2 * math.pi * self.theta ** (2 * index / head_dim)
            smooth = (self.original_context / wavelength - self.low) / (self.high - self.low)
            smooth = min(1.0, max(0.0, smooth))
            divisors.append(1 / ((1 - smooth) / self.factor + smooth))
        return divisors


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder. ``explicit_head_dim`` says whether config.json names the head size.

    ``context`` is how many positions it has; of a model that attends over a sliding window, how many lie in the window:
    up to there the window changes nothing, and beyond it nothing is exported.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eps: float
    rope: Rope
    tied: bool
    explicit_head_dim: bool


def decoder_shape(config: Mapping[str, Any], code: str) -> DecoderShape:
    """The shape of a config. RefusedInput (``code``) when it is no such decoder or has a part that is not supported."""
    names: Sequence[str] = config.get("architectures") or [f"model_type {config.get('model_type')}"]
    if len(names) != 1 or names[0] not in SUPPORTED:
        raise RefusedInput(
            code,
            f"the architecture {', '.join(map(str, names))} is not supported",
            facts=[f"supported: {', '.join(sorted(SUPPORTED))}"],
        )
    if (activation := config.get("hidden_act", "silu")) not in {"silu", "swish"}:
        raise RefusedInput(code, f"the activation {activation!r} is not supported", facts=["supported: silu"])
    try:
        return _shape(config, code)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedInput(code, f"config.json lacks a size or holds one that is no number: {error}") from error


def _shape(config: Mapping[str, Any], code: str) -> DecoderShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = config.get("head_dim")
    shape = DecoderShape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        feed_forward=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(head_dim) if head_dim else hidden // heads,
        vocabulary=int(config["vocab_size"]),
        context=min(int(config.get("max_position_embeddings", 2048)), _window(config)),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config, code),
        tied=bool(config.get("tie_word_embeddings", False)),
        explicit_head_dim=head_dim is not None,
    )
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise ValueError("heads do not divide into key-value heads, or the head size is odd")
    return shape


def _window(config: Mapping[str, Any]) -> int:
    """Positions in the sliding window where layers have one: Mistral's unless it is null, Qwen's if told so."""
    window = config.get("sliding_window")
    mistral = "MistralForCausalLM" in (config.get("architectures") or ())
    return int(window) if window and (mistral or config.get("use_sliding_window")) else 1 << 40


def _rope(config: Mapping[str, Any], code: str) -> Rope:
    """transformers 5 writes ``rope_parameters``; before, ``rope_theta`` and ``rope_scaling``, which it still obeys
    first."""
    given = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = str(given.get("rope_type", given.get("type", "default"))).lower()
    theta = float(given.get("rope_theta", config.get("rope_theta", 10000.0)))
    if kind == "default":
        return Rope(theta, kind)
    if kind == "linear":
        return Rope(theta, kind, float(given["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            float(given["factor"]),
            float(given["low_freq_factor"]),
            float(given["high_freq_factor"]),
            int(given["original_max_position_embeddings"]),
        )
    raise RefusedInput(code, f"the rope type {kind!r} is not supported", facts=["supported: default, linear, llama3"])
