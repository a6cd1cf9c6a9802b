"""``convert``: a model in another format or dtype → a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Done, Given, Least, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.stream.vocabulary import Counted, Weights


class Convert(Stage):
    """Write a GGUF or a Hugging Face folder as a Hugging Face folder of one dtype.

    Quantized tensors are dequantized, of a GGUF and of a Hugging Face checkpoint (compressed-tensors, bitsandbytes).
    Of a GGUF the tokenizer is built from its own vocabulary and the chat template is kept, so that text gives the token
    ids that llama.cpp gives. It streams: memory does not grow with the model.
    """

    kind: ClassVar[str] = "convert"
    revision: ClassVar[int] = 2
    produces: ClassVar[Literal["hf"]] = "hf"
    inputs: ClassVar[dict[str, Role]] = {"model": Role(accepts=("any", "gguf", "hf"))}
    tools: ClassVar[tuple[str, ...]] = ("gguf", "numpy", "tokenizers", "torch")
    needs: ClassVar[tuple[str, ...]] = ("jinja2", "safetensors", "transformers")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("numpy", "torch", "gguf", "tokenizers")
    streams: ClassVar[tuple[str, ...]] = ("model",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("parameters", "parameters"),
        Measure("tensors", "tensors"),
        Measure("weight_bytes", "B"),
        Measure("bits_per_weight_in", "bits"),
        Measure("bits_per_weight", "bits"),
    )

    to: Literal["hf"] = Field(default="hf", description="the format to write: a Hugging Face folder")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="the dtype of the weights that are written"
    )
    shard_bytes: int = Field(default=5_000_000_000, gt=0, description="the most bytes of weights in one file")
    allow_nonfinite: bool = Field(default=False, description="take weights that are NaN or infinite as they are")

    def weightwise(self) -> bool:
        """Always: a cast maps a tensor."""
        return True

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights, each as wide as ``dtype``."""
        return inputs["model"].stored(32 if self.dtype == "float32" else 16)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Build the folder.

        RefusedInput: E-GGUF-*, E-ARCH, E-ST-*, E-NOT-HF, E-CONFIG-CODE, E-FORMAT-PICKLE for what cannot be read;
        E-DTYPE-RANGE when a weight is too large for float16, E-NONFINITE when it is no number; E-QUANTIZED for a
        Hugging Face folder in another quantization format than those it reads.
        """
        from ingot.kit.stream.inputs import build

        return build(self, given, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The folder's weights as a stream; its other files lie in the weights' folder."""
        from ingot.kit.gguf.reader import find_gguf
        from ingot.kit.hf import torch_dtype
        from ingot.kit.stream.cast import Cast

        gguf = None if "model" in given.virtual else find_gguf(given.one("model"))
        if gguf is None:
            weights, bits, quantized = self._from_hf(given, progress)
        else:
            (weights, bits), quantized = self._from_gguf(gguf, given, progress), None
        notes = {} if quantized is None else {"dequantized_from": quantized}
        weights.chain.append(Cast(torch_dtype(self.dtype)))
        weights.shard_bytes = self.shard_bytes
        weights.measure = lambda counted: Done(_metrics(counted, bits), notes=notes)
        return weights

    def _from_gguf(self, path: Path, given: Given, progress: Progress) -> tuple[Weights, float]:
        from ingot.kit.gguf.hf_view import GgufModel
        from ingot.kit.gguf.reader import read_gguf
        from ingot.kit.gguf.tokenizer import write_tokenizer
        from ingot.kit.hf import write_json
        from ingot.kit.stream.gguf_source import Dequantize, GgufSource
        from ingot.kit.stream.inputs import expected_files, side_folder, with_origin
        from ingot.kit.stream.nonfinite import RefuseNonFinite
        from ingot.kit.stream.vocabulary import Weights

        progress.phase("checking the GGUF")
        gguf = read_gguf(path)
        model = GgufModel(gguf)
        folder = side_folder(given)
        ids = model.token_config(write_tokenizer(gguf.metadata, folder, max_length=model.sizes.context))
        write_json(folder / "config.json", {**model.config, **ids, "dtype": self.dtype})
        write_json(folder / "generation_config.json", ids)
        size = sum(info.size for info in gguf.tensors)
        finite = [] if self.allow_nonfinite else [RefuseNonFinite()]
        progress.phase("dequantizing")
        source = GgufSource(gguf, expected_files(given, "model"))
        weights = Weights(source, folder, [Dequantize(gguf), model.names(), *finite])
        return with_origin(weights, given, "model"), 8 * size / model.parameters

    def _from_hf(self, given: Given, progress: Progress) -> tuple[Weights, float, str | None]:
        from ingot.kit.hf import read_config
        from ingot.kit.layers import copy_model_files
        from ingot.kit.quant.plain import open_plain
        from ingot.kit.stream.chain import slots
        from ingot.kit.stream.inputs import side_folder

        weights, quantized = open_plain(given, progress, finite=not self.allow_nonfinite)
        config = read_config(weights.folder)
        config.pop("quantization_config", None)
        config.pop("torch_dtype", None)
        found = slots(weights)
        size, elements = sum(slot.nbytes for slot in found), sum(slot.elements for slot in found)
        if quantized is not None:
            from ingot.kit.hf import entries

            size = sum(entry.end - entry.begin for _, entry in entries(weights.folder))
        folder = side_folder(given)
        copy_model_files(weights.folder, folder, config={**config, "dtype": self.dtype})
        weights.folder = folder
        progress.phase("casting" if quantized is None else "dequantizing")
        return weights, 8 * size / elements, quantized


def _metrics(counted: Counted, bits_in: float) -> dict[str, Metric]:
    count = counted.parameters
    return {
        "parameters": Metric(count, "parameters", "elements of the tensors written"),
        "tensors": Metric(len(counted.tensors), "tensors", "tensors written"),
        "weight_bytes": Metric(counted.file_bytes, "B", "size of the safetensors files"),
        "bits_per_weight_in": Metric(bits_in, "bits", "tensor bytes of the input x 8 / its elements"),
        "bits_per_weight": Metric(8 * counted.data_bytes / count, "bits", "tensor bytes written x 8 / elements"),
    }
