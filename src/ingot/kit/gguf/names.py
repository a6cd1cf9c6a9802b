"""Architectures as data: which GGUF tensor each Hugging Face tensor becomes, and the fields llama.cpp reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.writer import Field, f32, text, u32
from ingot.kit.llama_config import LlamaShape

_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """The tensors of one architecture.

    ``whole`` and ``block`` map module names (those of a block without ``model.layers.N.``) to GGUF's. ``rotary``
    names the projections whose rows are reordered, with whose number of heads: transformers rotates the two halves
    of a head, llama.cpp neighbouring pairs.
    """

    name: str
    whole: Mapping[str, str]
    block: Mapping[str, str]
    rotary: Mapping[str, str]


LLAMA = Architecture(
    name="llama",
    whole={"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    block={
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    rotary={"attn_q": "heads", "attn_k": "kv_heads"},
)

_SKIPPED = re.compile(r".*\.rotary_emb\.inv_freq")


def gguf_name(arch: Architecture, name: str) -> str | None:
    """The GGUF name of a tensor; None for one that holds no weights. RefusedInput (E-GGUF-TENSOR) if unknown."""
    if _SKIPPED.fullmatch(name):
        return None
    if (match := _BLOCK.fullmatch(name)) and (module := arch.block.get(match[2])):
        return f"blk.{match[1]}.{module}.{match[3]}"
    module_name, _, part = name.rpartition(".")
    if part in {"weight", "bias"} and (module := arch.whole.get(module_name)):
        return f"{module}.{part}"
    raise RefusedInput("E-GGUF-TENSOR", f"the model holds a tensor that {arch.name} does not have: {name!r}")


def arrange(arch: Architecture, shape: LlamaShape, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as llama.cpp wants it: rows of rotary projections from halves to pairs, others unchanged."""
    parts = name.split(".")
    count = arch.rotary.get(parts[-2])
    if count is None:
        return tensor
    heads = int(getattr(shape, count))
    rows = tensor.shape[0]
    paired = tensor.reshape(heads, 2, rows // heads // 2, *tensor.shape[1:]).swapaxes(1, 2)
    return paired.reshape(tensor.shape)


def shape_fields(arch: Architecture, shape: LlamaShape, file_type: int, parameters: int) -> list[Field]:
    """The general fields and the sizes, in the order of llama.cpp's own converter."""
    name = arch.name
    fields = [
        text("general.architecture", name),
        text("general.type", "model"),
        text("general.size_label", size_label(parameters)),
        u32(f"{name}.block_count", shape.layers),
        u32(f"{name}.context_length", shape.context),
        u32(f"{name}.embedding_length", shape.hidden),
        u32(f"{name}.feed_forward_length", shape.feed_forward),
        u32(f"{name}.attention.head_count", shape.heads),
        u32(f"{name}.attention.head_count_kv", shape.kv_heads),
    ]
    if shape.rope.kind == "linear":
        fields += [text(f"{name}.rope.scaling.type", "linear"), f32(f"{name}.rope.scaling.factor", shape.rope.factor)]
    fields += [
        f32(f"{name}.rope.freq_base", shape.rope.theta),
        f32(f"{name}.attention.layer_norm_rms_epsilon", shape.eps),
    ]
    if shape.explicit_head_dim:
        fields += [
            u32(f"{name}.attention.key_length", shape.head_dim),
            u32(f"{name}.attention.value_length", shape.head_dim),
        ]
    return [
        *fields,
        u32("general.file_type", file_type),
        u32(f"{name}.vocab_size", shape.vocabulary),
        u32(f"{name}.rope.dimension_count", shape.head_dim),
        u32("general.quantization_version", 2),
    ]


def size_label(parameters: int) -> str:
    """The size class of a model as GGUF's naming convention writes it: ``260K``, ``135M``, ``1.2B``."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    unit, suffix = next((pair for pair in units if parameters > pair[0]), units[-1])
    scaled = parameters / unit
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


def extra_tensors(shape: LlamaShape) -> Mapping[str, torch.Tensor]:
    """Tensors that no checkpoint holds: the frequency divisors of llama3's rope scaling."""
    divisors = shape.rope.divisors(shape.head_dim) if shape.rope.kind == "llama3" else None
    return {} if divisors is None else {"rope_freqs.weight": torch.tensor(divisors, dtype=torch.float32)}
