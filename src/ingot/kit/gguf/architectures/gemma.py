"""Gemma 2 and the text part of Gemma 3: norms that multiply by 1 + w, four a layer, windows on most layers."""

from __future__ import annotations

from ingot.kit.gguf.architectures.llama import EMBEDDING, GATED, OUTPUT, SIZES
from ingot.kit.gguf.architectures.words import Architecture, Implied, Key, Module, Sizes

_MODULES = (
    EMBEDDING,
    Module("*norm", "output_norm", ("hidden",), "plus_one"),
    Module("*layers.N.input_layernorm", "blk.N.attn_norm", ("hidden",), "plus_one"),
    Module("*layers.N.self_attn.q_proj", "blk.N.attn_q", ("queries", "hidden")),
    Module("*layers.N.self_attn.k_proj", "blk.N.attn_k", ("keys", "hidden")),
    Module("*layers.N.self_attn.v_proj", "blk.N.attn_v", ("keys", "hidden")),
    Module("*layers.N.self_attn.o_proj", "blk.N.attn_output", ("hidden", "queries")),
    Module("*layers.N.post_attention_layernorm", "blk.N.post_attention_norm", ("hidden",), "plus_one"),
    Module("*layers.N.pre_feedforward_layernorm", "blk.N.ffn_norm", ("hidden",), "plus_one"),
    Module("*layers.N.post_feedforward_layernorm", "blk.N.post_ffw_norm", ("hidden",), "plus_one"),
    *GATED,
)
_IMPLIED: dict[str, Implied] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (False, None),
}


def _layer_types(full: int) -> Implied:
    """Every layer looks back over a window but each ``full``-th; llama.cpp has the number in its code."""

    def types(sizes: Sizes) -> list[str]:
        return ["sliding_attention" if (layer + 1) % full else "full_attention" for layer in range(sizes.layers)]

    return types


def _scale(largest: int) -> Implied:
    """llama.cpp scales by the head size, and by the hidden size over the heads in the model of so many layers."""

    def scale(sizes: Sizes) -> int:
        return sizes.hidden // sizes.heads if sizes.layers == largest else sizes.head

    return scale


GEMMA2 = Architecture(
    name="gemma2",
    model="Gemma2ForCausalLM",
    model_type="gemma2",
    keys=(
        Key("context_length", "max_position_embeddings"),
        Key("embedding_length", "hidden_size"),
        Key("block_count", "num_hidden_layers"),
        Key("feed_forward_length", "intermediate_size"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.head_count_kv", "num_key_value_heads", size="heads"),
        Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "f32"),
        Key("attention.key_length", "head_dim"),
        Key("attention.value_length", "head_dim"),
        "file_type",
        Key("attn_logit_softcapping", "attn_logit_softcapping", "f32"),
        Key("final_logit_softcapping", "final_logit_softcapping", "f32"),
        Key("attention.sliding_window", "sliding_window"),
    ),
    modules=_MODULES,
    windowed=True,
    implied={
        **_IMPLIED,
        "tie_word_embeddings": (True,),
        "layer_types": _layer_types(2),
        "query_pre_attn_scalar": _scale(46),
    },
    # a checkpoint may repeat the embedding; llama.cpp always takes the embedding
    skipped=(".rotary_emb.inv_freq", "lm_head.weight"),
)

GEMMA3 = Architecture(
    name="gemma3",
    model="Gemma3ForCausalLM",
    model_type="gemma3_text",
    keys=(
        *SIZES,
        "scaling",
        "theta",
        "local_theta",
        Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "f32"),
        Key("attention.key_length", "head_dim"),
        Key("attention.value_length", "head_dim"),
        "file_type",
        Key("final_logit_softcapping", "final_logit_softcapping", "f32", optional=True),
        Key("attention.sliding_window", "sliding_window"),
    ),
    modules=(
        *_MODULES,
        OUTPUT,
        Module("*layers.N.self_attn.q_norm", "blk.N.attn_q_norm", ("head",), "plus_one"),
        Module("*layers.N.self_attn.k_norm", "blk.N.attn_k_norm", ("head",), "plus_one"),
    ),
    scalings=("default", "linear"),
    windowed=True,
    implied={
        **_IMPLIED,
        "attn_logit_softcapping": (None,),
        "layer_types": _layer_types(6),
        "query_pre_attn_scalar": _scale(62),
    },
)
