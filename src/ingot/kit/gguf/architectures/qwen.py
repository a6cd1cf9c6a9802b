"""Qwen2 (and 2.5), which has biases on queries, keys and values; Qwen3, which has norms on queries and keys."""

from __future__ import annotations

from ingot.kit.gguf.architectures.llama import COMMON, EMBEDDING, GATED, OUTPUT, OUTPUT_NORM, SILU
from ingot.kit.gguf.architectures.words import Architecture, Module

_NORMS = (
    Module("*layers.N.input_layernorm", "blk.N.attn_norm", ("hidden",)),
    Module("*layers.N.post_attention_layernorm", "blk.N.ffn_norm", ("hidden",)),
)

QWEN2 = Architecture(
    name="qwen2",
    model="Qwen2ForCausalLM",
    model_type="qwen2",
    keys=COMMON,
    modules=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        # llama.cpp takes queries as wide as the model, whatever the size of a head
        Module("*layers.N.self_attn.q_proj", "blk.N.attn_q", ("hidden", "hidden"), bias="always"),
        Module("*layers.N.self_attn.k_proj", "blk.N.attn_k", ("keys", "hidden"), bias="always"),
        Module("*layers.N.self_attn.v_proj", "blk.N.attn_v", ("keys", "hidden"), bias="always"),
        Module("*layers.N.self_attn.o_proj", "blk.N.attn_output", ("hidden", "hidden")),
        *_NORMS,
        *GATED,
    ),
    scalings=("default", "linear", "yarn"),
    implied=SILU,
)

QWEN3 = Architecture(
    name="qwen3",
    model="Qwen3ForCausalLM",
    model_type="qwen3",
    keys=COMMON,
    modules=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        Module("*layers.N.self_attn.q_proj", "blk.N.attn_q", ("queries", "hidden")),
        Module("*layers.N.self_attn.k_proj", "blk.N.attn_k", ("keys", "hidden")),
        Module("*layers.N.self_attn.v_proj", "blk.N.attn_v", ("keys", "hidden")),
        Module("*layers.N.self_attn.o_proj", "blk.N.attn_output", ("hidden", "queries")),
        Module("*layers.N.self_attn.q_norm", "blk.N.attn_q_norm", ("head",)),
        Module("*layers.N.self_attn.k_norm", "blk.N.attn_k_norm", ("head",)),
        *_NORMS,
        *GATED,
    ),
    scalings=("default", "linear", "yarn"),
    implied={**SILU, "attention_bias": (False,)},
)
