"""Llama, and Mistral and SmolLM3, which have the same tensors."""

from __future__ import annotations

from dataclasses import replace

from ingot.kit.gguf.architectures.words import Architecture, Key, Module, Part, Sizes

#: The sizes that llama.cpp's converter writes first for most decoders, in its order.
SIZES: tuple[Key | Part, ...] = (
    Key("block_count", "num_hidden_layers"),
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.head_count_kv", "num_key_value_heads", size="heads"),
)

#: All fields that it writes for most decoders.
COMMON: tuple[Key | Part, ...] = (
    *SIZES,
    "scaling",
    "theta",
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "f32"),
    Key("attention.key_length", "head_dim", optional=True),
    Key("attention.value_length", "head_dim", optional=True),
    "file_type",
)

EMBEDDING = Module("*embed_tokens", "token_embd", ("vocabulary", "hidden"))
OUTPUT_NORM = Module("*norm", "output_norm", ("hidden",))
OUTPUT = Module("lm_head", "output", ("vocabulary", "hidden"))
#: The feed-forward part that all but GPT-2 and Phi-3 share.
GATED = (
    Module("*layers.N.mlp.gate_proj", "blk.N.ffn_gate", ("wide", "hidden")),
    Module("*layers.N.mlp.up_proj", "blk.N.ffn_up", ("wide", "hidden")),
    Module("*layers.N.mlp.down_proj", "blk.N.ffn_down", ("hidden", "wide")),
)

_ATTENTION = (
    Module("*layers.N.input_layernorm", "blk.N.attn_norm", ("hidden",)),
    Module("*layers.N.self_attn.q_proj", "blk.N.attn_q", ("queries", "hidden"), "rotary", "attention_bias"),
    Module("*layers.N.self_attn.k_proj", "blk.N.attn_k", ("keys", "hidden"), "rotary", "attention_bias"),
    Module("*layers.N.self_attn.v_proj", "blk.N.attn_v", ("keys", "hidden"), bias="attention_bias"),
    Module("*layers.N.self_attn.o_proj", "blk.N.attn_output", ("hidden", "queries"), bias="attention_bias"),
    Module("*layers.N.post_attention_layernorm", "blk.N.ffn_norm", ("hidden",)),
)


def without_bias(modules: tuple[Module, ...]) -> tuple[Module, ...]:
    """The same modules with weights alone."""
    return tuple(replace(module, bias="") for module in modules)


_MODULES = (
    EMBEDDING,
    OUTPUT_NORM,
    OUTPUT,
    *_ATTENTION,
    *(replace(module, bias="mlp_bias") for module in GATED),
)
_SIZED = (*COMMON, Key("vocab_size", "vocab_size", optional=True), "rotated")
#: A Llama's config.json always has the size of a head.
_KEYS = tuple(replace(key, size="head") if isinstance(key, Key) and key.hf == "head_dim" else key for key in _SIZED)
SILU = {"hidden_act": ("silu", "swish")}

LLAMA = Architecture(
    name="llama",
    model="LlamaForCausalLM",
    model_type="llama",
    keys=_KEYS,
    modules=_MODULES,
    scalings=("default", "linear", "llama3", "yarn"),
    implied=SILU,
)

#: In llama.cpp a Mistral is a Llama: the window of the oldest ones, 4096 positions, is not in the file.
MISTRAL = Architecture(
    name="llama",
    model="MistralForCausalLM",
    model_type="mistral",
    keys=_KEYS,
    modules=(EMBEDDING, OUTPUT_NORM, OUTPUT, *without_bias(_ATTENTION), *GATED),
    scalings=("default", "linear", "llama3", "yarn"),
    implied=SILU,
)


def _rotated_layers(sizes: Sizes) -> list[int]:
    """SmolLM3 leaves every fourth layer without rotation; llama.cpp has the 4 in its code."""
    return [int((layer + 1) % 4 != 0) for layer in range(sizes.layers)]


SMOLLM3 = Architecture(
    name="smollm3",
    model="SmolLM3ForCausalLM",
    model_type="smollm3",
    keys=_SIZED,
    modules=(EMBEDDING, OUTPUT_NORM, OUTPUT, *without_bias(_ATTENTION), *GATED),
    scalings=("default", "linear", "yarn"),
    implied={
        **SILU,
        "no_rope_layers": _rotated_layers,
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
)
