"""The graph of a model: the exporter's graph of each piece, one layer's repeated, put together under names of our own.

What the exporter writes beside the graph (stack traces, paths of files, names of Python modules) stays behind: nodes
are built anew from operator, inputs, outputs and attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from ingot.errors import StageFailed
from ingot.kit.decoder.build import extras_of
from ingot.kit.decoder.layers import Extras
from ingot.kit.decoder.shape import DecoderShape
from ingot.kit.onnx_model.logs import quiet
from ingot.kit.onnx_model.modules import Kind, pieces

INPUTS = ("input_ids", "attention_mask", "position_ids")
LOGITS = "logits"
_TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}


def past(layer: int) -> tuple[str, str]:
    """The inputs that hold keys and values of earlier tokens, under the names that optimum gives them."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """The outputs that hold keys and values of all tokens."""
    return f"present.{layer}.key", f"present.{layer}.value"


def hidden(layer: int) -> str:
    """The value that goes into a layer; behind the last one, into the last norm."""
    return f"hidden.{layer}"


#: Sizes that stand for free ones: all different and none of them 1, so that torch takes none for another.
_SIZES: Mapping[int | str, int] = {"batch": 2, "sequence": 5, "past": 3, "total": 8}


@dataclass(frozen=True)
class Port:
    """An input of a piece: its sizes, a free one by its name, and its type."""

    sizes: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Piece:
    """What the exporter made of a module: nodes, constants, names of inputs and outputs, and the weights it reads."""

    nodes: Sequence[onnx.NodeProto]
    constants: Sequence[TensorProto]
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def export(module: nn.Module, ports: tuple[Any, ...], opset: int) -> Piece:
    """A module's graph by ``torch.onnx``. StageFailed (E-ONNX-EXPORT) when torch cannot tell one."""
    weights = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in module.named_parameters()}
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")  # of torch's about its own internals
            program = torch.onnx.export(
                module,
                _examples(ports),
                dynamo=True,
                dynamic_shapes=_dynamic(ports),
                opset_version=opset,
                verbose=False,
                optimize=False,
            )
            _give_weights_in(program.model.graph, weights)
            program.optimize()
    except Exception as error:  # of any kind, with a report of hundreds of lines
        raise StageFailed(
            "E-ONNX-EXPORT",
            f"torch cannot write the model for opset {opset}",
            facts=[_reason(error)],
        ) from error
    found = program.model_proto
    versions = {item.version for item in found.opset_import if item.domain == ""}
    if versions != {opset}:
        raise StageFailed("E-ONNX-EXPORT", f"torch writes opset {versions} where opset {opset} was asked for")
    graph = found.graph
    inputs = [item.name for item in graph.input if item.name not in weights]
    outputs = [item.name for item in graph.output]
    return Piece(list(graph.node), list(graph.initializer), inputs, outputs, weights)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom: torch wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _give_weights_in(graph: Any, names: Iterable[str]) -> None:
    """Turn initializers into inputs: they hold nothing that the optimizer could read."""
    for name in names:
        if name in graph.initializers:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)


def _examples(ports: Any) -> Any:
    if isinstance(ports, tuple):
        return tuple(_examples(port) for port in ports)
    if ports is None:
        return None
    return torch.empty([_SIZES.get(size, size) for size in ports.sizes], dtype=ports.dtype, device="meta")


def _dynamic(ports: Any) -> Any:
    if isinstance(ports, tuple):
        return tuple(_dynamic(port) for port in ports)
    if ports is None:
        return None
    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(ports.sizes) if isinstance(size, str)}


@dataclass
class Assembled:
    """A graph that grows: its nodes, small constants by content, and which weights it reads under which name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[bytes, TensorProto] = field(default_factory=dict)
    weights: dict[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)

    def add(
        self,
        piece: Piece,
        prefix: str,
        given: Sequence[str],
        found: Sequence[str],
        weight_name: Callable[[str], str],
    ) -> None:
        """Append a piece that reads the values ``given`` and makes those ``found``, its own named after ``prefix``."""
        names = dict(zip(piece.inputs, given, strict=True)) | dict(zip(piece.outputs, found, strict=True))
        for name, what in piece.weights.items():
            names[name] = weight_name(name)
            self.weights[names[name]] = what
        names |= {tensor.name: self._constant(tensor) for tensor in piece.constants}
        for node in piece.nodes:
            if node.op_type == "Constant" and node.domain == "":
                names[node.output[0]] = self._constant(helper.get_attribute_value(node.attribute[0]))
                continue
            self._append(node, prefix, names)

    def _append(self, node: onnx.NodeProto, prefix: str, names: Mapping[str, str]) -> None:
        def renamed(values: Sequence[str]) -> list[str]:
            return [value and names.get(value, f"{prefix}/{value}") for value in values]

        name = f"{prefix}/{node.op_type}.{len(self.nodes)}"
        made = helper.make_node(node.op_type, renamed(node.input), renamed(node.output), name=name, domain=node.domain)
        for attribute in sorted(node.attribute, key=lambda item: item.name):
            made.attribute.add().CopyFrom(attribute)
            made.attribute[-1].ClearField("doc_string")
        self.nodes.append(made)

    def _constant(self, tensor: TensorProto) -> str:
        plain = TensorProto(
            data_type=tensor.data_type, dims=tensor.dims, raw_data=onnx.numpy_helper.to_array(tensor).tobytes()
        )
        key = plain.SerializeToString(deterministic=True)
        if key not in self.constants:
            plain.name = f"constant.{len(self.constants)}"
            self.constants[key] = plain
        return str(self.constants[key].name)


def build(shape: DecoderShape, names: Sequence[str], kind: Kind, opset: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model without its weights, and their types and shapes by name (``weights.source`` says what each is)."""
    front, layer, tail = _exported(replace(shape, layers=1), extras_of(names), kind, opset)
    graph = Assembled()
    place = ["cos", "sin", "mask"]
    graph.add(front, "front", INPUTS, [hidden(0), *place], lambda name: name)
    for number in range(shape.layers):
        before, after = (past(number), present(number)) if kind.cached else ((), ())
        graph.add(
            layer,
            f"layer.{number}",
            [hidden(number), *place, *before],
            [hidden(number + 1), *after],
            lambda name, number=number: name.replace("block.", f"layers.{number}.", 1),  # type: ignore[misc]
        )
    shared = {"lm_head.embedding.weight": "embed_tokens.weight"}
    graph.add(tail, "tail", [hidden(shape.layers)], [LOGITS], lambda name: shared.get(name, name))
    proto = helper.make_graph(
        graph.nodes, "model", list(_inputs(shape, kind)), list(_outputs(shape, kind)), list(graph.constants.values())
    )
    imports = [helper.make_opsetid("", opset)]
    # the oldest that has the operators: old runtimes read no newer one
    version = helper.find_min_ir_version_for(imports)
    return helper.make_model(proto, opset_imports=imports, ir_version=version), graph.weights


@cache
def _exported(shape: DecoderShape, extras: Extras, kind: Kind, opset: int) -> tuple[Piece, Piece, Piece]:
    """The three pieces of models of this shape, whatever their number of layers; traced once a process."""
    front, layer, tail = pieces(shape, extras, kind)
    seen = "total" if kind.cached else "sequence"
    ids = Port(("batch", "sequence"), torch.int64)
    state = Port(("batch", "sequence", shape.hidden))
    angles = Port(("batch", 1, "sequence", shape.head_dim), kind.dtype)
    place = angles, angles, Port(("batch", 1, "sequence", seen), kind.dtype)
    kept = Port(("batch", shape.kv_heads, "past", shape.head_dim), kind.dtype)
    return (
        export(front, (ids, Port(("batch", seen), torch.int64), ids), opset),
        export(layer, (state, place, (kept, kept) if kind.cached else None), opset),
        export(tail, (state,), opset),
    )


def _inputs(shape: DecoderShape, kind: Kind) -> Iterator[onnx.ValueInfoProto]:
    seen = "total_sequence" if kind.cached else "sequence"
    for name, last in zip(INPUTS, ("sequence", seen, "sequence"), strict=True):
        yield helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", last])
    yield from _cache(shape, kind, past, "past_sequence")


def _outputs(shape: DecoderShape, kind: Kind) -> Iterator[onnx.ValueInfoProto]:
    yield helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", "sequence", shape.vocabulary])
    yield from _cache(shape, kind, present, "total_sequence")


def _cache(
    shape: DecoderShape, kind: Kind, name: Callable[[int], tuple[str, str]], length: str
) -> Iterator[onnx.ValueInfoProto]:
    sizes = ["batch", shape.kv_heads, length, shape.head_dim]
    for layer in range(shape.layers if kind.cached else 0):
        for each in name(layer):
            yield helper.make_tensor_value_info(each, _TYPES[kind.dtype], sizes)
