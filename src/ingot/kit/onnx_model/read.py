"""ONNX models are read with suspicion: where weights lie is a text in the file, and a runtime opens what it names.

Nothing reaches ONNX Runtime before this has looked at it: every tensor that lies outside of the model must lie in a
plain file beside it, within that file's size.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from ingot.errors import RefusedInput
from ingot.kit.onnx_model.files import MODEL

_MOST = (1 << 31) - 1
_DEPTH = 16


def read_model(folder: Path) -> onnx.ModelProto:
    """``model.onnx`` of a folder, its weights left where they lie.

    RefusedInput: E-ONNX-FORMAT when there is none or it is damaged; E-ONNX-EXTERNAL when it names a file that is not
    a plain one of the folder, or a place that the file does not have.
    """
    size = _plain_size(folder / MODEL)
    if size is None or not 0 < size <= _MOST:
        raise RefusedInput("E-ONNX-FORMAT", f"the folder holds no {MODEL} of at most 2 GiB")
    try:
        model = onnx.load_model_from_string((folder / MODEL).read_bytes())
    except Exception as error:  # protobuf's, whose package comes with onnx
        raise RefusedInput("E-ONNX-FORMAT", f"{MODEL} is damaged: it is no ONNX model") from error
    if not model.graph.node or not model.graph.output:
        raise RefusedInput("E-ONNX-FORMAT", f"{MODEL} is damaged: its graph computes nothing")
    for tensor in tensors(model):
        _check(tensor, folder)
    return model


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: of its graphs, of those within nodes, of its functions and of what trains it."""
    yield from _of_graph(model.graph, 0)
    for training in model.training_info:
        yield from _of_graph(training.initialization, 0)
        yield from _of_graph(training.algorithm, 0)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node, 0)
        for attribute in function.attribute_proto:
            yield from _of_attribute(attribute, 0)


def _of_graph(graph: GraphProto, depth: int) -> Iterator[TensorProto]:
    if depth > _DEPTH:
        raise RefusedInput("E-ONNX-FORMAT", f"graphs lie within graphs more than {_DEPTH} deep")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node, depth)


def _of_node(node: NodeProto, depth: int) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from _of_attribute(attribute, depth)


def _of_attribute(attribute: AttributeProto, depth: int) -> Iterator[TensorProto]:
    yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _of_graph(graph, depth + 1)


def _check(tensor: TensorProto, folder: Path) -> None:
    if not tensor.external_data and tensor.data_location != TensorProto.EXTERNAL:
        return
    given = {item.key: item.value for item in tensor.external_data}
    location = given.get("location", "")
    size = _plain_size(folder / location) if _inside(location) else None
    if size is None:
        raise RefusedInput(
            "E-ONNX-EXTERNAL",
            f"the weight {tensor.name!r} lies in {location!r}, which is not a plain file beside the model",
            hint="save the model with its weights beside it: ingot reads nothing from elsewhere",
        )
    try:
        offset, length = int(given.get("offset") or 0), int(given["length"]) if given.get("length") else None
    except ValueError:
        offset, length = -1, None
    end = size if length is None else offset + length
    if not 0 <= offset <= end <= size:
        raise RefusedInput(
            "E-ONNX-EXTERNAL",
            f"the weight {tensor.name!r} lies beyond the end of {location}",
            facts=[f"offset {given.get('offset')}, length {given.get('length')}, the file has {size} bytes"],
        )


def _inside(location: str) -> bool:
    """Whether a name is that of a file in the model's own folder, on any system."""
    return location not in {"", ".", ".."} and not set(location) & set("/\\:\0")


def _plain_size(path: Path) -> int | None:
    """The size of a regular file; None for anything else, symbolic links too."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
