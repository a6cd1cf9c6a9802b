"""A GGUF of the Llama architecture as a Hugging Face model: configuration, tensor names, row order.

llama.cpp rotates pairs of neighbouring rows where transformers rotates the two halves of a head, so its converter
interleaves the rows of the query and key projections (``permute`` in
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py); here that is undone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.reader import Gguf, TensorInfo
from ingot.kit.gguf.tokenizer import Special
from ingot.kit.stream.vocabulary import Route, Slot, unchanged

_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the Hugging Face model: its name, where it lies in the GGUF, heads to reorder by (0: none)."""

    name: str
    info: TensorInfo
    heads: int = 0


class LlamaGguf:
    """The Hugging Face view of a Llama GGUF.

    RefusedInput on making one: E-ARCH (another architecture, experts, partial rotation), E-GGUF-KEY (a value is
    missing or odd), E-GGUF-TENSOR (tensors missing, unknown, or of a shape unlike the metadata),
    E-GGUF-SPLIT (one part of several), E-GGUF-ROPE (a frequency scaling that has no Hugging Face form here).
    """

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self._meta = gguf.metadata
        architecture = self._meta.get("general.architecture")
        if architecture != "llama":
            raise _arch(f"its architecture is {architecture!r}", hint="convert reads Llama models for now")
        if self._meta.get("split.count", 0) not in (0, 1):
            raise RefusedInput(
                "E-GGUF-SPLIT",
                f"{gguf.path.name} is one part of {self._meta['split.count']}",
                hint="join the parts with llama.cpp's gguf-split --merge",
            )
        if self._meta.get("llama.expert_count", 0):
            raise _arch(f"it is a mixture of {self._meta['llama.expert_count']} experts")
        self._by_name = {info.name: info for info in gguf.tensors}
        self.config = self._config()
        self.tensors = self._tensors()

    def weights(self, tensor: Tensor) -> npt.NDArray[np.float32]:
        """A tensor's float32 weights in the row order of transformers."""
        rows = self.gguf.dequantized(tensor.info)
        return undo_permute(rows, tensor.heads) if tensor.heads else rows

    def token_config(self, special: Special) -> dict[str, Any]:
        """generation_config.json: begin, end (also end of turn) and padding ids."""
        ends = [index for index in (special.eos, special.end_of_turn) if index is not None]
        ends = list(dict.fromkeys(ends))
        found = {
            "bos_token_id": special.bos,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": special.pad,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _number(self, key: str, default: float | None = None) -> Any:
        value = self._meta.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise RefusedInput("E-GGUF-KEY", f"{self.gguf.path.name}: llama.{key} is {value!r}, not a positive number")
        return value

    def _config(self) -> dict[str, Any]:
        hidden, heads = self._number("embedding_length"), self._number("attention.head_count")
        head_dim = self._number("attention.key_length", hidden // heads)
        if self._number("rope.dimension_count", head_dim) != head_dim:
            raise _arch("only a part of each head is rotated")
        embedding = self._by_name.get("token_embd.weight")
        if embedding is None:
            raise RefusedInput("E-GGUF-TENSOR", f"{self.gguf.path.name} has no token_embd.weight")
        theta = _shortest(self._number("rope.freq_base", 10000.0))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": _shortest(self._number("attention.layer_norm_rms_epsilon")),
            "rope_theta": theta,
            "rope_parameters": {"rope_theta": theta, **self._scaling(theta, head_dim)},
            "tie_word_embeddings": self._tied(embedding),
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
        }

    def _tied(self, embedding: TensorInfo) -> bool:
        """Whether the output layer is the embedding: absent, or the same bytes of the same type."""
        output = self._by_name.get("output.weight")
        if output is None:
            return True
        same = (output.type, output.shape) == (embedding.type, embedding.shape)
        return same and np.array_equal(self.gguf.raw(output), self.gguf.raw(embedding))

    def _scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        kind = self._meta.get("llama.rope.scaling.type", "none")
        factors = self._by_name.get("rope_freqs.weight")
        if factors is not None and kind == "none":
            return _llama3_scaling(self.gguf.dequantized(factors), theta, head_dim)
        if factors is None and kind == "linear":
            return {"rope_type": "linear", "factor": _shortest(self._number("rope.scaling.factor"))}
        if factors is None and kind == "none":
            return {"rope_type": "default"}
        raise RefusedInput("E-GGUF-ROPE", f"{self.gguf.path.name} scales its positions by the rule {kind!r}")

    def _tensors(self) -> tuple[Tensor, ...]:
        config = self.config
        wanted = {name: Tensor(hf, self._find(name, self._shape(name))) for name, hf in _TOP.items()}
        if "output.weight" in self._by_name:
            info = self._find("output.weight", self._shape("token_embd.weight"))
            if not config["tie_word_embeddings"]:
                wanted["output.weight"] = Tensor("lm_head.weight", info)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        for layer in range(config["num_hidden_layers"]):
            for part, hf in _BLOCK.items():
                name = f"blk.{layer}.{part}.weight"
                info = self._find(name, self._shape(part))
                wanted[name] = Tensor(f"model.layers.{layer}.{hf}.weight", info, heads.get(part, 0))
        unknown = sorted(self._by_name.keys() - wanted.keys() - {"output.weight", "rope_freqs.weight"})
        if unknown:
            raise RefusedInput(
                "E-GGUF-TENSOR",
                f"{self.gguf.path.name} holds tensors that a Llama does not have",
                facts=[f"{len(unknown)} of them: {', '.join(unknown[:6])}"],
            )
        return tuple(wanted.values())

    def _find(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._by_name.get(name)
        if info is None:
            raise RefusedInput("E-GGUF-TENSOR", f"{self.gguf.path.name} has no tensor {name}")
        if info.shape != shape:
            raise RefusedInput(
                "E-GGUF-TENSOR", f"{self.gguf.path.name}: {name} has the shape {info.shape}, expected {shape}"
            )
        return info

    def _shape(self, part: str) -> tuple[int, ...]:
        config = self.config
        hidden, wide = config["hidden_size"], config["intermediate_size"]
        queries = config["num_attention_heads"] * config["head_dim"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        shapes: Mapping[str, tuple[int, ...]] = {
            "token_embd.weight": (config["vocab_size"], hidden),
            "attn_q": (queries, hidden),
            "attn_k": (keys, hidden),
            "attn_v": (keys, hidden),
            "attn_output": (hidden, queries),
            "ffn_gate": (wide, hidden),
            "ffn_up": (wide, hidden),
            "ffn_down": (hidden, wide),
        }
        return shapes.get(part, (hidden,))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)


def undo_permute(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of a query or key projection from llama.cpp's interleaved order to transformers' two halves a head."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF keeps 1e-05 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _llama3_scaling(factors: npt.NDArray[np.float32], theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's scaling from the per-frequency factors that the GGUF keeps instead of its parameters.

    The published models use low 1, high 4, original length 8192 and a factor of 8 or 32. The factors are computed
    from these again, and other ones are refused (E-GGUF-ROPE).
    """
    parameters: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": _shortest(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / parameters["factor"] + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise RefusedInput("E-GGUF-ROPE", "the GGUF scales its positions unlike any published Llama 3")
    return parameters


def _arch(what: str, hint: str | None = None) -> RefusedInput:
    return RefusedInput("E-ARCH", f"the GGUF cannot be converted: {what}", hint=hint)


@dataclass(frozen=True)
class ToHf:
    """Names dequantized tensors as transformers does, and gives their rows its order; others are left out."""

    model: LlamaGguf

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``kit.stream``'s ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """One tensor of the model, if it is one."""
        return [_route(tensor, slot) for tensor in self.model.tensors if tensor.info.name == slot.name]

    def finish(self) -> None:
        """See ``kit.stream``'s ``Transform``."""


def _route(tensor: Tensor, slot: Slot) -> Route:
    named = replace(slot, name=tensor.name)
    if not tensor.heads:
        return Route(named, unchanged, identity="")
    height = slot.rows // tensor.heads

    def reorder(rows: torch.Tensor, _start: int) -> torch.Tensor:
        return torch.from_numpy(undo_permute(rows.numpy(), rows.shape[0] // height))

    return Route(named, reorder, grain=height, identity=f"heads of {height}")
