"""A Hugging Face Llama folder as an unquantized GGUF, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit.compressed import iter_plain_tensors
from ingot.kit.gguf.names import LLAMA, arrange, extra_tensors, gguf_name, shape_fields
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.gguf.writer import TensorInfo, write_gguf
from ingot.kit.hf import read_config
from ingot.kit.llama_config import LlamaShape, llama_shape

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NUMBERS = {"F32": 0, "F16": 1, "BF16": 32}


@dataclass(frozen=True)
class Written:
    """What was written: the type of the matrices and how many weights the source has."""

    type: str
    parameters: int


def write_plain(
    model: Path, tokenizer: Any, path: Path, kind: str | None, watch: Callable[[int, int], None]
) -> Written:
    """Write ``path``; matrices in ``kind`` (None: as they are stored), vectors in F32 as llama.cpp wants them.

    ``tokenizer`` is transformers' own of the same folder. ``watch`` is told (bytes written, bytes in all).
    RefusedInput: E-GGUF-ARCH, E-GGUF-TENSOR, E-GGUF-TOKENIZER.
    """
    config = read_config(model)
    shape = llama_shape(config, "E-GGUF-ARCH")
    sources = _survey(model, shape)
    kind = kind or _stored_type(sources)
    extra = extra_tensors(shape)
    infos = [TensorInfo(name, tuple(tensor.shape), "F32") for name, tensor in extra.items()]
    infos += [TensorInfo(name, size, kind if len(size) > 1 else "F32") for name, (size, _) in sources.items()]
    parameters = sum(math.prod(size) for size, _ in sources.values())
    fields = shape_fields(LLAMA, shape, _NUMBERS[kind], parameters)
    fields += vocabulary_fields(model, config, tokenizer)
    types = {info.name: info.type for info in infos}
    total = sum(info.nbytes for info in infos)
    write_gguf(path, fields, infos, _watched(_content(model, shape, extra, types), total, watch))
    return Written(kind, parameters)


def _survey(model: Path, shape: LlamaShape) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """GGUF name → shape and dtype, in the order of the source; the table stands before the data in the file."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, tensor in iter_plain_tensors(model):
        if (target := gguf_name(LLAMA, name)) is not None:
            found[target] = (tuple(tensor.shape), tensor.dtype)
    missing = sorted(_expected(shape) - found.keys())
    if missing:
        raise RefusedInput(
            "E-GGUF-TENSOR", f"the model lacks {len(missing)} tensors, first {missing[0]!r}", facts=["names as in GGUF"]
        )
    return found


def _expected(shape: LlamaShape) -> set[str]:
    names = {"token_embd.weight", "output_norm.weight"} | (set() if shape.tied else {"output.weight"})
    for block in range(shape.layers):
        names |= {f"blk.{block}.{module}.weight" for module in LLAMA.block.values()}
    return names


def _stored_type(sources: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    """The type that holds every stored matrix exactly."""
    dtypes = {dtype for size, dtype in sources.values() if len(size) > 1}
    return {torch.bfloat16: "BF16", torch.float16: "F16"}.get(dtypes.pop(), "F32") if len(dtypes) == 1 else "F32"


def _content(
    model: Path, shape: LlamaShape, extra: Mapping[str, torch.Tensor], types: Mapping[str, str]
) -> Iterator[memoryview]:
    for tensor in extra.values():
        yield memoryview(tensor.numpy())
    for name, tensor in iter_plain_tensors(model):
        if (target := gguf_name(LLAMA, name)) is not None:
            laid = arrange(LLAMA, shape, target, tensor).to(_DTYPES[types[target]]).contiguous()
            yield memoryview(laid.flatten().view(torch.uint8).numpy())


def _watched(content: Iterator[memoryview], total: int, watch: Callable[[int, int], None]) -> Iterator[memoryview]:
    done = 0
    for view in content:
        yield view
        done += view.nbytes
        watch(done, total)
