"""GPT-2: learned positions, norms with biases, matrices that lie inputs first."""

from __future__ import annotations

from ingot.kit.gguf.architectures.words import Architecture, Key, Module

GPT2 = Architecture(
    name="gpt2",
    model="GPT2LMHeadModel",
    model_type="gpt2",
    keys=(
        Key("block_count", "n_layer"),
        Key("context_length", "n_positions"),
        Key("embedding_length", "n_embd"),
        Key("feed_forward_length", "n_inner", size="wide"),
        Key("attention.head_count", "n_head"),
        Key("attention.layer_norm_epsilon", "layer_norm_epsilon", "f32"),
        "file_type",
    ),
    modules=(
        Module("*wte", "token_embd", ("vocabulary", "hidden")),
        Module("*wpe", "position_embd", ("context", "hidden")),
        Module("*ln_f", "output_norm", ("hidden",), bias="always"),
        Module("lm_head", "output", ("vocabulary", "hidden")),
        Module("*h.N.ln_1", "blk.N.attn_norm", ("hidden",), bias="always"),
        Module("*h.N.attn.c_attn", "blk.N.attn_qkv", ("queries_keys_values", "hidden"), "transposed", "always"),
        Module("*h.N.attn.c_proj", "blk.N.attn_output", ("hidden", "hidden"), "transposed", "always"),
        Module("*h.N.ln_2", "blk.N.ffn_norm", ("hidden",), bias="always"),
        Module("*h.N.mlp.c_fc", "blk.N.ffn_up", ("wide", "hidden"), "transposed", "always"),
        Module("*h.N.mlp.c_proj", "blk.N.ffn_down", ("hidden", "wide"), "transposed", "always"),
    ),
    # the first published checkpoints have no prefix, and hold the causal mask
    prefixes=("transformer.", ""),
    scalings=(),  # it rotates nothing
    implied={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    skipped=(".attn.bias", ".attn.masked_bias"),
    f32=frozenset({"position_embd.weight"}),
)
