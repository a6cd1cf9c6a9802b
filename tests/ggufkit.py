"""Small GGUF files made field by field, so that a test can bend any of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def raw_gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> bytes:
    """Header, keys, tensor infos, padding to 32, data."""
    head = magic + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def tensor_info(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def write_llama(path: Path, changes: Mapping[str, Any] | None = None, drop: Sequence[str] = ()) -> Path:
    """A two-layer Llama with random weights and the vocabulary of a byte-level BPE."""
    rng = np.random.default_rng(5)
    options = {"heads": 4, "kv": 2, "hidden": 32, "wide": 64, "layers": 2, **(changes or {})}
    writer = gguf.GGUFWriter(str(path), options.get("architecture", "llama"))
    writer.add_block_count(options["layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(options["hidden"])
    writer.add_feed_forward_length(options["wide"])
    writer.add_head_count(options["heads"])
    writer.add_head_count_kv(options["kv"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(options.get("theta", 10000.0))
    if "experts" in options:
        writer.add_expert_count(options["experts"])
    if "rope_dims" in options:
        writer.add_rope_dimension_count(options["rope_dims"])
    _add_vocabulary(writer, str(options.get("pre", "gpt-2")))
    for name, weights in _weights(rng, options).items():
        if name not in drop:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary() -> list[str]:
    """The 256 byte tokens of GPT-2, one merge, and three marks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*bytes_to_unicode().values(), "Ġt", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def _add_vocabulary(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_chat_template(TEMPLATE)


def _weights(rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    hidden, wide = options["hidden"], options["wide"]
    keys = hidden // options["heads"] * options["kv"]

    def matrix(*shape: int) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    found = {"token_embd.weight": matrix(260, hidden), "output_norm.weight": 1 + matrix(hidden)}
    for layer in range(options["layers"]):
        shapes = {
            "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
            "attn_output": (hidden, hidden), "ffn_norm": (hidden,), "ffn_gate": (wide, hidden),
            "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
        }  # fmt: skip
        found |= {f"blk.{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
    if "rope_freqs" in options:
        found["rope_freqs.weight"] = np.asarray(options["rope_freqs"], dtype=np.float32)
    return found
