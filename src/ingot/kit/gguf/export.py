"""A Hugging Face Llama folder as an unquantized GGUF, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.kit.compressed import iter_plain_tensors
from ingot.kit.gguf.layout import GgufNames, gguf_layout
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.gguf.writer import TensorInfo, write_gguf
from ingot.kit.hf import read_config
from ingot.kit.stream.vocabulary import Slot

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STORED = {dtype: name for name, dtype in _DTYPES.items()}
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
    layout = gguf_layout(config)
    sources = _survey(model, layout.names())
    kind = kind or _stored_type(sources)
    extra = layout.extra()
    infos = [TensorInfo(name, tuple(tensor.shape), "F32") for name, tensor in extra.items()]
    infos += [TensorInfo(name, size, layout.plain_type(name, size, kind)) for name, (size, _) in sources.items()]
    parameters = sum(math.prod(size) for size, _ in sources.values())
    fields = layout.fields(_NUMBERS[kind], parameters)
    fields += vocabulary_fields(model, config, tokenizer)
    types = {info.name: info.type for info in infos}
    total = sum(info.nbytes for info in infos)
    write_gguf(path, fields, infos, _watched(_content(model, layout.names(), extra, types), total, watch))
    return Written(kind, parameters)


def _slot(name: str, tensor: torch.Tensor) -> Slot:
    return Slot(name, tuple(tensor.shape), _STORED.get(tensor.dtype, "F32"))


def _survey(model: Path, names: GgufNames) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """GGUF name → shape and dtype, in the order of the source; the table stands before the data in the file."""
    slots = [(_slot(name, tensor), tensor.dtype) for name, tensor in iter_plain_tensors(model)]
    names.begin([slot for slot, _ in slots])
    return {route.slot.name: (route.slot.shape, dtype) for slot, dtype in slots for route in names.routes(slot)}


def _stored_type(sources: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    """The type that holds every stored matrix exactly."""
    dtypes = {dtype for size, dtype in sources.values() if len(size) > 1}
    return {torch.bfloat16: "BF16", torch.float16: "F16"}.get(dtypes.pop(), "F32") if len(dtypes) == 1 else "F32"


def _content(
    model: Path, names: GgufNames, extra: Mapping[str, torch.Tensor], types: Mapping[str, str]
) -> Iterator[memoryview]:
    for tensor in extra.values():
        yield memoryview(tensor.numpy())
    for name, tensor in iter_plain_tensors(model):
        for route in names.routes(_slot(name, tensor)):
            laid = route.apply(tensor, 0).to(_DTYPES[types[route.slot.name]]).contiguous()
            yield memoryview(laid.flatten().view(torch.uint8).numpy())


def _watched(content: Iterator[memoryview], total: int, watch: Callable[[int, int], None]) -> Iterator[memoryview]:
    done = 0
    for view in content:
        yield view
        done += view.nbytes
        watch(done, total)
