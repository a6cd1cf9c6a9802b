"""ONNX Runtime's graph optimizations, done once and saved.

Only levels that do not depend on the machine (``basic``, ``extended``); ``all`` lays weights out for the processor at
hand, and every session does that anyway when it loads a model.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ingot.errors import StageFailed
from ingot.kit.onnx_model import files

Level = Literal["basic", "extended"]

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def optimize(source: Path, out: Path, level: Level, *, outside: int) -> onnx.ModelProto:
    """The model in the folder ``source`` as ONNX Runtime rewrites it; its weights are written into ``out``.

    StageFailed (E-ONNX-OPTIMIZE) when ONNX Runtime does not take the model.
    """
    folder = source / "optimized"
    folder.mkdir()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.optimized_model_filepath = str(folder / files.MODEL)
    options.log_severity_level = 3
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", files.DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(files.SMALL + 1)),
        ("session.disable_prepacking", "1"),
    ):
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(source / files.MODEL), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageFailed("E-ONNX-OPTIMIZE", f"ONNX Runtime does not take the model: {error}") from error
    model = onnx.load(folder / files.MODEL, load_external_data=False)
    _rewrite(model, folder, out, outside)
    used = {node.domain for node in model.graph.node}
    kept = [item for item in model.opset_import if item.domain in used]  # it imports all that it knows
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _rewrite(model: onnx.ModelProto, folder: Path, out: Path, outside: int) -> None:
    """Copy the weights, in the order of their names."""
    initializers = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    total = sum(_length(tensor) for tensor in initializers)
    writer = files.Writer(out, outside=total > outside)
    for tensor in initializers:
        writer.add(tensor.name, _array(tensor, folder))
    del model.graph.initializer[:]
    model.graph.initializer.extend(writer.tensors)


def _length(tensor: TensorProto) -> int:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(prod(tensor.dims)) * int(kind.itemsize)


def _array(tensor: TensorProto, folder: Path) -> files.Array:
    if tensor.data_location != TensorProto.EXTERNAL:
        found: files.Array = numpy_helper.to_array(tensor)
        return found
    given = {item.key: item.value for item in tensor.external_data}
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(
        folder / given["location"], kind, mode="r", offset=int(given.get("offset", 0)), shape=tuple(tensor.dims)
    )
