"""Phi-3 (and 3.5, Phi-4, Phi-4-mini, which are the same to transformers): projections fused, and kept so."""

from __future__ import annotations

from ingot.kit.gguf.architectures.llama import EMBEDDING, OUTPUT, OUTPUT_NORM, SILU
from ingot.kit.gguf.architectures.words import Architecture, Key, Module

PHI3 = Architecture(
    name="phi3",
    model="Phi3ForCausalLM",
    model_type="phi3",
    keys=(
        Key("context_length", "max_position_embeddings"),
        "original_context",
        Key("embedding_length", "hidden_size"),
        Key("feed_forward_length", "intermediate_size"),
        Key("block_count", "num_hidden_layers"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.head_count_kv", "num_key_value_heads", size="heads"),
        Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "f32"),
        "rotated",
        "theta",
        "file_type",
        # llama.cpp reads the window and does not apply it
        "window_or_0",
    ),
    modules=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        Module("*layers.N.input_layernorm", "blk.N.attn_norm", ("hidden",)),
        Module("*layers.N.self_attn.qkv_proj", "blk.N.attn_qkv", ("queries_keys_values", "hidden")),
        Module("*layers.N.self_attn.o_proj", "blk.N.attn_output", ("hidden", "hidden")),
        Module("*layers.N.post_attention_layernorm", "blk.N.ffn_norm", ("hidden",)),
        Module("*layers.N.mlp.gate_up_proj", "blk.N.ffn_up", ("gate_up", "hidden")),
        Module("*layers.N.mlp.down_proj", "blk.N.ffn_down", ("hidden", "wide")),
    ),
    scalings=("default", "longrope"),
    partial=True,
    implied=SILU,
)
