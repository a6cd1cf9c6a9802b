"""A checkpoint as ``model.onnx``: graph, weights, quantized matrices, all in the memory of its largest matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import onnx
import torch
from onnx import helper

from ingot.core.stage import Progress
from ingot.kit.decoder.shape import DecoderShape
from ingot.kit.onnx_model import files, graph, weights
from ingot.kit.onnx_model.modules import Kind
from ingot.kit.onnx_model.quantize import Plan, Quantizer


@dataclass(frozen=True)
class Settings:
    """What of the model is chosen; ``outside`` is the size from which on weights lie beside the model."""

    precision: Literal["float32", "float16"]
    cached: bool
    opset: int
    outside: int
    quantization: Plan | None = None

    def kind(self, shape: DecoderShape) -> Kind:
        """The kind of graph. Of a quantized model the embedding is stored in half: it is read, not multiplied."""
        dtype = torch.float16 if self.precision == "float16" else torch.float32
        quantized = self.quantization is not None
        return Kind(dtype, torch.float16 if quantized else dtype, self.cached, shape.tied and not quantized)


def convert(
    model: tuple[DecoderShape, Mapping[str, object]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    settings: Settings,
    folders: tuple[Path, Path],
    progress: Progress,
) -> tuple[onnx.ModelProto, int]:
    """Write the weights; give the model, which names them, and the number of weights.

    ``model`` is the shape and the names of its tensors; ``folders`` are the model's and one for what the tools need.
    RefusedInput: E-ONNX-TENSOR, E-ONNX-RANGE.
    """
    shape, names = model
    progress.phase("export")
    proto, wanted = graph.build(shape, list(names), settings.kind(shape), settings.opset)
    products = {
        node.input[1]: node for node in proto.graph.node if node.op_type == "MatMul" and node.input[1] in wanted
    }
    quantizer = None
    if settings.quantization is not None:
        quantizer = Quantizer(settings.quantization, folders[1])
    progress.phase("write weights")
    writer = files.Writer(folders[0], outside=_size(wanted, products, settings) > settings.outside)
    for number, (name, tensor) in enumerate(weights.stream(tensors, wanted, shape), 1):
        if quantizer is not None and name in products:
            for part, array in quantizer.quantize(products[name], tensor.numpy()):
                writer.add(part, array)
        else:
            writer.add(name, tensor.numpy())
        progress(number, len(wanted), "weights")
    if quantizer is not None:
        quantizer.splice(proto)
    proto.graph.initializer.extend(files.by_use(proto, writer.tensors))
    return proto, parameters(wanted, shape)


def _size(wanted: weights.Wanted, products: Mapping[str, object], settings: Settings) -> int:
    """About how many bytes the weights take."""
    plan = settings.quantization
    bits = 0 if plan is None else {"int8": 9, "int8_dynamic": 8, "int4": 5}[plan.scheme]
    total = 0
    for name, (dtype, sizes) in wanted.items():
        total += prod(sizes) * (bits if bits and name in products else 8 * dtype.itemsize)
    return total // 8


def parameters(wanted: weights.Wanted, shape: DecoderShape) -> int:
    """The number of weights, tied ones counted once."""
    again = {weights.FREQUENCIES, *([weights.HEAD] if shape.tied else [])}
    return sum(prod(sizes) for name, (_, sizes) in wanted.items() if name not in again)


def bytes_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of all stored numbers by type, as numpy calls it."""
    found: dict[str, int] = {}
    for tensor in model.graph.initializer:
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        found[str(kind)] = found.get(str(kind), 0) + prod(tensor.dims) * kind.itemsize
    return dict(sorted(found.items()))
