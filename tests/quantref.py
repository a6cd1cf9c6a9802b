"""llama.cpp's own quantizer, and small GGUFs for it whose names alone matter: it looks at no shape but the rows'."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from ingot.kit.gguf.mixture import ModelFacts, Tensor, Wish
from ingot.kit.gguf.reader import Gguf, read_gguf
from ingot.kit.gguf.types import FILE_TYPES, GGML_TYPES
from ingot.kit.gguf.writer import Field, TensorInfo, f32, text, u32, write_gguf
from ingot.kit.llama_cpp import _LOG

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def quantize(
    source: Path, target: Path, wish: Wish | str, imatrix: Mapping[str, torch.Tensor] | None = None, threads: int = 2
) -> Gguf:
    """``llama_model_quantize``; RuntimeError with its last words when it refuses.

    The tables of IQ1_S, IQ1_M, IQ2_XS, IQ2_S and IQ2_M take 2 to 10 s to build, once in a process.
    """
    said = _run(source, target, Wish(wish) if isinstance(wish, str) else wish, imatrix, threads=threads)
    if said is not None:
        raise RuntimeError(said[-400:])
    return read_gguf(target)


def types(source: Path, wish: Wish, imatrix: Mapping[str, torch.Tensor] | None = None) -> dict[str, str]:
    """The types that ``llama_model_quantize`` chooses, as its dry run tells them. RuntimeError as ``quantize``."""
    lines: list[str] = []
    said = _run(source, source.with_name("never-written"), wish, imatrix, dry=lines)
    log = "".join(lines)
    if said is not None or "will require an imatrix" in log:
        raise RuntimeError("imatrix" if said is None else said[-400:])
    found = re.findall(
        r"\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^\n>]*(?:-> [^\n(]*\((\w+)\))?\n", log
    )
    return {name: (new or old).upper() for name, old, new in found}


def _run(
    source: Path, target: Path, wish: Wish, imatrix: Any, *, threads: int = 1, dry: list[str] | None = None
) -> str | None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = threads
    settings.dry_run = dry is not None
    settings.ftype = FILE_TYPES[wish.type][0]
    if wish.embedding:
        settings.token_embedding_type = GGML_TYPES[wish.embedding].number
    if wish.output:
        settings.output_tensor_type = GGML_TYPES[wish.output].number
    kept: list[Any] = []
    if imatrix is not None:
        settings.imatrix = _imatrix(imatrix, kept)
    if wish.overrides:
        entry = llama_cpp.llama_cpp.llama_model_tensor_override
        rows = [entry(pattern.encode(), GGML_TYPES[kind].number) for pattern, kind in wish.overrides]
        kept.append((entry * (len(rows) + 1))(*rows, entry(None, 0)))
        settings.tt_overrides = kept[-1]
    lines: list[str] = [] if dry is None else dry
    callback = llama_cpp.llama_log_callback(lambda _level, line, _data: lines.append(line.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    _LOG.install()
    return " ".join(lines[-12:]) if code else None


def _imatrix(entries: Mapping[str, torch.Tensor], kept: list[Any]) -> Any:
    entry = llama_cpp.llama_cpp.llama_model_imatrix_data
    rows = []
    for name, values in entries.items():
        data = values.numpy().astype(np.float32)
        kept += [data, name.encode()]
        rows.append(entry(kept[-1], data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(data)))
    kept.append((entry * (len(rows) + 1))(*rows, entry(None, None, 0)))
    return kept[-1]


def facts_fields(facts: ModelFacts) -> list[Field]:
    """The metadata that llama.cpp wants of any decoder before it quantizes."""
    name = facts.architecture
    return [
        text("general.architecture", name),
        u32(f"{name}.block_count", facts.layers),
        u32(f"{name}.context_length", 128),
        u32(f"{name}.embedding_length", 64 * facts.heads),
        u32(f"{name}.feed_forward_length", 512),
        u32(f"{name}.attention.head_count", facts.heads),
        u32(f"{name}.attention.head_count_kv", facts.kv_heads),
        u32(f"{name}.attention.sliding_window", 64),
        f32(f"{name}.attention.layer_norm_rms_epsilon", 1e-5),
        f32(f"{name}.attention.layer_norm_epsilon", 1e-5),
        u32("general.file_type", 0),
        u32("general.quantization_version", 2),
    ]


def skeleton(facts: ModelFacts, *, tied: bool, columns: int = 256, stored: str = "F32", rows: int = 1) -> list[Tensor]:
    """Every tensor of a decoder with ``rows`` rows each, in the order of a checkpoint."""
    split = facts.architecture not in {"phi3", "gpt2"}
    attention = ["attn_q", "attn_k", "attn_v"] if split else ["attn_qkv"]
    wide = ["ffn_up"] if facts.architecture in {"phi3", "gpt2"} else ["ffn_gate", "ffn_up"]
    found = [Tensor("token_embd.weight", (rows + 1, columns), stored)]
    if facts.architecture == "gpt2":
        found.append(Tensor("position_embd.weight", (rows + 1, columns), "F32"))
    for layer in range(facts.layers):
        found.append(Tensor(f"blk.{layer}.attn_norm.weight", (columns,), "F32"))
        names = [*attention, "attn_output", "ffn_down", *wide]
        found += [Tensor(f"blk.{layer}.{name}.weight", (rows + 1, columns), stored) for name in names]
    found.append(Tensor("output_norm.weight", (columns,), "F32"))
    return found if tied else [*found, Tensor("output.weight", (rows + 1, columns), stored)]


def random_weights(tensors: Sequence[Tensor], seed: int = 3) -> dict[str, torch.Tensor]:
    """A weight for each, in the type in which it is stored."""
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.shape, generator=generator).mul(0.1).to(_DTYPES[t.stored]) for t in tensors}


def write(path: Path, facts: ModelFacts, tensors: Sequence[Tensor], weights: Mapping[str, torch.Tensor]) -> Path:
    """The unquantized GGUF."""
    infos = [TensorInfo(tensor.name, tensor.shape, tensor.stored) for tensor in tensors]
    views = (memoryview(weights[t.name].contiguous().view(torch.uint8).numpy()).cast("B") for t in tensors)
    write_gguf(path, facts_fields(facts), infos, views)
    return path


def random_imatrix(tensors: Sequence[Tensor], seed: int = 4) -> dict[str, torch.Tensor]:
    """A weight for each column of each matrix in a layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: torch.rand(t.shape[-1], generator=generator) + 0.01
        for t in tensors
        if len(t.shape) > 1 and t.name.startswith("blk.")
    }
