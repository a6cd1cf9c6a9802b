"""Where weights lie: in ``model.onnx`` itself, or from a size on in ``model.onnx.data`` beside it.

The format is that of ``onnx.external_data_helper``: an initializer names a file beside the model, an offset and a
length. Offsets are multiples of 4,096, so that runtimes can map a weight alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

MODEL, DATA = "model.onnx", "model.onnx.data"
#: Weights up to this size lie in the model itself: runtimes look at small ones when they plan.
SMALL = 1024

_ALIGN = 4096

Array = npt.NDArray[np.generic]


class Writer:
    """Takes weights one by one; those that go outside are written at once and no longer held."""

    def __init__(self, folder: Path, *, outside: bool) -> None:
        self._path = folder / DATA
        self._outside = outside
        self._end = 0
        self.tensors: list[TensorProto] = []

    def add(self, name: str, array: Array) -> None:
        """Append a weight under its name."""
        array = np.ascontiguousarray(array)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if self._outside and array.nbytes > SMALL:
            self._append(tensor, array)
        else:
            tensor.raw_data = array.tobytes()
        self.tensors.append(tensor)

    def _append(self, tensor: TensorProto, array: Array) -> None:
        offset = -(-self._end // _ALIGN) * _ALIGN
        with self._path.open("ab") as file:
            file.write(bytes(offset - self._end))
            file.write(array.reshape(-1).view(np.uint8).data)
        self._end = offset + array.nbytes
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)


def save(model: onnx.ModelProto, folder: Path, metadata: Iterable[tuple[str, str]]) -> None:
    """Write the model with nothing in it that is not of the graph: equal models give equal bytes."""
    clean(model)
    for key, value in metadata:
        model.metadata_props.add(key=key, value=value)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def clean(model: onnx.ModelProto) -> None:
    """Take out what writers leave behind: names of programs, notes with paths and stack traces, shapes in between."""
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version", "metadata_props"):
        model.ClearField(field)
    graph = model.graph
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        for field in ("doc_string", "metadata_props"):
            item.ClearField(field)
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")


def by_use(model: onnx.ModelProto, tensors: Sequence[TensorProto]) -> list[TensorProto]:
    """Weights that the graph reads, in the order of their names."""
    used = {name for node in model.graph.node for name in node.input}
    return sorted((tensor for tensor in tensors if tensor.name in used), key=lambda tensor: tensor.name)
