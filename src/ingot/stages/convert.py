"""``convert``: a model in another format or dtype → a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Given, Metric, Metrics, Progress, Role, Stage
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    import torch


class Convert(Stage):
    """Write a GGUF or a Hugging Face folder as a Hugging Face folder of one dtype.

    Quantized GGUF tensors are dequantized; the tokenizer is built from the GGUF's own vocabulary and the chat template
    is kept, so that text gives the token ids that llama.cpp gives. One tensor is held at a time, and one shard.
    """

    kind: ClassVar[str] = "convert"
    produces: ClassVar[Literal["hf"]] = "hf"
    inputs: ClassVar[dict[str, Role]] = {"model": Role(accepts=("any", "gguf", "hf"))}
    tools: ClassVar[tuple[str, ...]] = ("gguf", "numpy", "tokenizers", "torch")
    needs: ClassVar[tuple[str, ...]] = ("jinja2", "safetensors", "transformers")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("numpy", "torch", "gguf", "tokenizers")

    to: Literal["hf"] = Field(default="hf", description="the format to write: a Hugging Face folder")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="the dtype of the weights that are written"
    )
    shard_bytes: int = Field(
        default=5_000_000_000, gt=0, description="the most bytes of weights in one file; one file is held in memory"
    )

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Build the folder.

        RefusedInput: E-GGUF-*, E-ARCH, E-ST-*, E-NOT-HF, E-CONFIG-CODE, E-FORMAT-PICKLE for what cannot be read;
        E-DTYPE-RANGE when a weight is too large for float16; E-QUANTIZED for a quantized Hugging Face folder.
        """
        from ingot.kit.gguf.reader import find_gguf
        from ingot.kit.hf import write_model

        folder = given.one("model")
        gguf = find_gguf(folder)
        counted = _Counted(progress, self.dtype)
        tensors = self._from_gguf(gguf, out, counted) if gguf is not None else self._from_hf(folder, out, counted)
        write_model(out, tensors, shard_bytes=self.shard_bytes)
        return counted.metrics(out)

    def _from_gguf(self, path: Path, out: Path, counted: _Counted) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        from ingot.kit.gguf.hf_view import GgufModel
        from ingot.kit.gguf.reader import read_gguf
        from ingot.kit.gguf.tokenizer import write_tokenizer
        from ingot.kit.hf import write_json
        from ingot.kit.stream.vocabulary import Slot

        counted.progress.phase("checking the GGUF")
        gguf = read_gguf(path)
        model = GgufModel(gguf)
        length = model.sizes.context
        ids = model.token_config(write_tokenizer(gguf.metadata, out, max_length=length))
        write_json(out / "config.json", {**model.config, **ids, "dtype": self.dtype})
        write_json(out / "generation_config.json", ids)
        counted.bytes_in = sum(info.size for info in gguf.tensors)
        counted.parameters_in = model.parameters
        names = model.names()
        routes = [(info, route) for info in gguf.tensors for route in names.routes(Slot(info.name, info.shape, "F32"))]
        counted.total = sum(info.elements for info, _ in routes)
        counted.progress.phase("dequantizing")
        for info, route in routes:
            weights = route.apply(torch.from_numpy(gguf.dequantized(info)), 0)
            yield route.slot.name, counted.cast(route.slot.name, weights)

    def _from_hf(self, folder: Path, out: Path, counted: _Counted) -> Iterator[tuple[str, torch.Tensor]]:
        import math

        from ingot.kit.hf import copy_side_files, entries, iter_tensors, read_config

        config = read_config(folder)
        if "quantization_config" in config:
            raise RefusedInput(
                "E-QUANTIZED",
                "the model is quantized, and a cast would not undo that",
                hint="convert the model that it was quantized from",
            )
        config.pop("torch_dtype", None)
        copy_side_files(folder, out, config={**config, "dtype": self.dtype})
        found = [entry for _, entry in entries(folder)]
        counted.bytes_in = sum(entry.end - entry.begin for entry in found)
        counted.parameters_in = counted.total = sum(math.prod(entry.shape) for entry in found)
        counted.progress.phase("casting")
        for name, tensor in iter_tensors(folder):
            yield name, counted.cast(name, tensor)


class _Counted:
    """What passes through: casts each tensor, reports progress, ends as metrics."""

    def __init__(self, progress: Progress, dtype: str) -> None:
        self.progress = progress
        self.dtype = dtype
        self.total = 0
        self.bytes_in = 0
        self.parameters_in = 0
        self._tensors = 0
        self._parameters = 0
        self._bytes = 0

    def cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        from ingot.kit.hf import torch_dtype

        result = tensor.to(torch_dtype(self.dtype)) if tensor.is_floating_point() else tensor
        if self.dtype == "float16" and bool((result.isinf() & ~tensor.isinf()).any()):
            raise RefusedInput(
                "E-DTYPE-RANGE",
                f"tensor {name} holds weights beyond what float16 can hold",
                facts=[f"largest absolute value: {float(tensor.abs().max()):g}, float16's: 65504"],
                hint="use dtype: bfloat16",
            )
        self._tensors += 1
        self._parameters += result.numel()
        self._bytes += result.numel() * result.element_size()
        self.progress(self._parameters, self.total, "parameters")
        return result

    def metrics(self, out: Path) -> dict[str, Any]:
        size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        count = self._parameters
        return {
            "parameters": Metric(count, "parameters", "elements of the tensors written"),
            "tensors": Metric(self._tensors, "tensors", "tensors written"),
            "weight_bytes": Metric(size, "B", "size of the safetensors files"),
            "bits_per_weight_in": Metric(
                8 * self.bytes_in / self.parameters_in, "bits", "tensor bytes of the input x 8 / its elements"
            ),
            "bits_per_weight": Metric(8 * self._bytes / count, "bits", "tensor bytes written x 8 / elements"),
        }
