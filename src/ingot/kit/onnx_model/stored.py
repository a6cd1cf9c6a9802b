"""The weights that a saved ONNX model stores, as plain numbers under the names of the checkpoint.

Of matrices in blocks (``MatMulNBits`` of ONNX Runtime's contrib operators): ``(q - zero point) · scale``, each column's
inputs in blocks, numbers of four bits two a byte, the lower half first, zero points packed likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from ingot.kit.decoder.shape import DecoderShape
from ingot.kit.onnx_model.read import read_model
from ingot.kit.onnx_model.weights import HEAD, source
from ingot.kit.parity.lazy import Readers

Floats = npt.NDArray[np.float32]


def stored_weights(folder: Path, names: Iterable[str], shape: DecoderShape) -> Readers | None:
    """What reads each weight of ``names``, a checkpoint's; None where the graph stores one in another form.

    A tied model's output layer is one more where the graph has a matrix for it that is not the embedding.
    (Inputs that are quantized too are no matter of weights, and ``optimization`` may fold a weight into another.)
    """
    found = {tensor.name: tensor for tensor in read_model(folder).graph.initializer}
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    apart = {HEAD} if shape.tied and _parts(found, HEAD) else set()
    for name in {*names, *apart}:
        own = name.removeprefix("model.")
        if own in found:
            readers[name] = partial(_plain, folder, found[own], turned=source(own, shape).turned)
        elif parts := _parts(found, own):
            bits, *tensors = parts
            readers[name] = partial(_blocks, folder, bits, tensors)
        else:
            return None
    return readers


def _parts(found: Mapping[str, onnx.TensorProto], name: str) -> tuple[int, *tuple[onnx.TensorProto, ...]] | None:
    for bits in (4, 8):
        parts = [found.get(f"{name}.{part}") for part in (f"Q{bits}", "scales", "zero_points")]
        if all(part is not None for part in parts):
            return bits, *(part for part in parts if part is not None)
    return None


def _array(folder: Path, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    value: npt.NDArray[Any] = numpy_helper.to_array(tensor, str(folder))
    return value


def _plain(folder: Path, tensor: onnx.TensorProto, *, turned: bool) -> torch.Tensor:
    value = _array(folder, tensor).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(value.T if turned else value))


def _blocks(folder: Path, bits: int, tensors: Iterable[onnx.TensorProto]) -> torch.Tensor:
    """(outputs, inputs), as a checkpoint has it."""
    quantized, scales, zeros = (_array(folder, tensor) for tensor in tensors)
    rows, count, _ = quantized.shape
    numbers = _numbers(quantized, bits).reshape(rows, count, -1)
    zero = _numbers(zeros.reshape(rows, -1), bits)[:, :count, np.newaxis]
    scale = scales.reshape(rows, count, 1).astype(np.float32)
    return torch.from_numpy(((numbers - zero) * scale).reshape(rows, -1))


def _numbers(packed: npt.NDArray[Any], bits: int) -> Floats:
    if bits == 8:
        return packed.astype(np.float32)
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1).astype(np.float32)
