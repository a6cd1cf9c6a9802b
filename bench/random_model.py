"""Llamas of any size with random weights, and adapters for them, written as Hugging Face folders.

Speed and memory do not depend on the values, so tensors are cut from one pool of random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_POOL = 1 << 27
_SHARD_BYTES = 4_900_000_000


@dataclass(frozen=True)
class Size:
    """The shape of a Llama."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    vocabulary: int

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(prod(shape) for _, shape in self.tensors())

    def linear(self) -> Mapping[str, tuple[int, int]]:
        """The linear layers of a block: (outputs, inputs)."""
        keys = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.feed_forward, self.hidden),
            "mlp.up_proj": (self.feed_forward, self.hidden),
            "mlp.down_proj": (self.hidden, self.feed_forward),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor in the order of its name."""
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            place = f"model.layers.{layer}"
            found |= {f"{place}.{name}.weight": shape for name, shape in self.linear().items()}
            found |= {f"{place}.{norm}.weight": (self.hidden,) for norm in _NORMS}
        yield from sorted(found.items())


_NORMS = ("input_layernorm", "post_attention_layernorm")

#: Billions of parameters, roughly → shape. 0.3 and 1.2 are TinyLlama's, with fewer and more layers; 8 is Llama 3.1's.
SIZES: Mapping[str, Size] = {
    "0.3": Size(hidden=1024, feed_forward=2816, layers=21, heads=16, kv_heads=2, tied=False, vocabulary=32000),
    "1.2": Size(hidden=2048, feed_forward=5632, layers=24, heads=32, kv_heads=4, tied=False, vocabulary=32000),
    "8": Size(hidden=4096, feed_forward=14336, layers=32, heads=32, kv_heads=8, tied=False, vocabulary=128256),
}


def write_model(folder: Path, size: Size) -> None:
    """The model in bfloat16, in shards; the tokenizer is put beside it by who needs one."""
    folder.mkdir(parents=True)
    pool = _Pool(0.02)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in size.tensors():
        if shards[-1] and held + 2 * prod(shape) > _SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append((name, shape))
        held += 2 * prod(shape)
    names = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path = folder / (several if len(shards) > 1 else "model.safetensors")
        _write(path, dict(shard), pool)
        names |= {name: path.name for name, _ in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": 2 * size.parameters}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(size)))


def write_adapter(folder: Path, size: Size, rank: int, *, upper: bool = False, seed: int = 0) -> None:
    """A LoRA adapter on all linear layers, in bfloat16, as PEFT saves it; ``upper``: on the upper half's attention."""
    folder.mkdir(parents=True)
    tensors: dict[str, tuple[int, ...]] = {}
    linear = {name: shape for name, shape in size.linear().items() if not upper or name.startswith("self_attn")}
    for layer in range(size.layers // 2 if upper else 0, size.layers):
        for name, (outputs, inputs) in linear.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{place}.lora_A.weight": (rank, inputs), f"{place}.lora_B.weight": (outputs, rank)}
    _write(folder / "adapter_model.safetensors", dict(sorted(tensors.items())), _Pool(0.01, seed))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": [name.rpartition(".")[2] for name in linear],
        "base_model_name_or_path": "random",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


class _Pool:
    """Random bfloat16 numbers of one spread, handed out from a ring that is longer than any period of a layer."""

    def __init__(self, spread: float, seed: int = 0) -> None:
        numbers = np.random.default_rng(seed).standard_normal(_POOL // 2 - 1, np.float32) * np.float32(spread)
        self._bytes = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        self._at = 0

    def take(self, count: int) -> Iterator[memoryview]:
        """``count`` bytes, in pieces."""
        view = memoryview(self._bytes)
        while count:
            piece = view[self._at : self._at + count]
            self._at = (self._at + len(piece)) % len(view)
            count -= len(piece)
            yield piece


def _write(path: Path, tensors: Mapping[str, tuple[int, ...]], pool: _Pool) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            for piece in pool.take(2 * prod(shape)):
                file.write(piece)


def _config(size: Size) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": size.hidden, "intermediate_size": size.feed_forward, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
        "head_dim": size.hidden // size.heads, "vocab_size": size.vocabulary, "tie_word_embeddings": size.tied,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "attention_bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02,
    }  # fmt: skip
