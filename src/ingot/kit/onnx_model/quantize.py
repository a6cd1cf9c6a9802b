"""Matrices in eight or four bits, by ONNX Runtime's own tools, one matrix at a time.

The tools take whole models and hold them several times over. Here each gets a model of one product, and what it makes
of it takes the place of the product in the graph: the same nodes and the same bytes, in the memory of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ingot.errors import RefusedInput, StageFailed
from ingot.kit.onnx_model.files import Array
from ingot.kit.onnx_model.logs import quiet

#: Numbers that a tool gets in one go: it copies them several times.
_AT_ONCE = 1 << 22
#: What is left where no block divides; not every spec that asked for blocks allows it.
_WITHOUT_BLOCKS = "use 'quantization: int8_dynamic' (with 'precision: float32')"

Scheme = Literal["int8", "int8_dynamic", "int4"]


@dataclass(frozen=True)
class Plan:
    """How matrices are quantized: the tool, and unless inputs are quantized too the weights that share a scale.

    ``level`` is MatMulNBits' ``accuracy_level``: 4 multiplies in int8, 0 as the inputs are.
    """

    scheme: Scheme
    opset: int
    block: int = 32
    level: int = 0

    @property
    def blocks(self) -> bool:
        """Whether weights alone are quantized, in blocks."""
        return self.scheme != "int8_dynamic"


def refuse_blocks(matrices: Mapping[str, int], block: int) -> None:
    """Refuse matrices whose inputs are no whole number of blocks (E-ONNX-BLOCK): the last would be padded."""
    for name, inputs in matrices.items():
        if inputs % block:
            fits = [size for size in (16, 32, 64, 128, 256) if not any(rows % size for rows in matrices.values())]
            raise RefusedInput(
                "E-ONNX-BLOCK",
                f"{name} has {inputs} inputs, which blocks of {block} do not divide",
                facts=[f"blocks that divide all matrices: {', '.join(map(str, fits)) or 'none'}"],
                hint=f"set block_size to {fits[-1]}" if fits else _WITHOUT_BLOCKS,
            )


class Quantizer:
    """Replaces products by a weight with what the tool makes of them. ``scratch`` is the tool's, for its files."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self._plan, self._scratch = plan, scratch
        self.nodes: dict[str, list[onnx.NodeProto]] = {}

    def quantize(self, product: onnx.NodeProto, weight: npt.NDArray[np.float32]) -> Iterator[tuple[str, Array]]:
        """The weights that take the place of ``product``'s; its nodes are kept under its name."""
        name = product.input[1]
        made = self._in_slices(weight)
        prefix = product.name
        outer = {"input": product.input[0], "output": product.output[0]}
        stored = {tensor.name: f"{name}.{_part(tensor.name)}" for tensor in made.graph.initializer}

        def renamed(value: str) -> str:
            return value and (outer.get(value) or stored.get(value) or f"{prefix}/{value}")

        self.nodes[prefix] = [
            _renamed(node, f"{prefix}/{node.op_type}.{number}", renamed) for number, node in enumerate(made.graph.node)
        ]
        if all(node.op_type == "MatMul" for node in made.graph.node):
            raise StageFailed("E-ONNX-QUANTIZE", f"ONNX Runtime's tool left {name} as it was")
        for tensor in made.graph.initializer:
            yield stored[tensor.name], numpy_helper.to_array(tensor)

    def _in_slices(self, weight: npt.NDArray[np.float32]) -> onnx.ModelProto:
        """As the tool makes of the whole: each column is quantized by itself, so some at a time give the same."""
        inputs, outputs = weight.shape
        step = max(1, _AT_ONCE // inputs)
        starts = range(0, outputs, step)
        slices = [self._made(_alone(weight[:, at : at + step], self._plan.opset)) for at in starts]
        made = slices[0]
        if len(slices) == 1:
            return made
        for index, tensor in enumerate(made.graph.initializer):
            parts = [numpy_helper.to_array(each.graph.initializer[index]) for each in slices]
            # of what has a number a column, columns come last; of blocks they come first
            axis = parts[0].ndim - 1 if self._plan.scheme == "int8_dynamic" else 0
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate(parts, axis=axis), tensor.name))
        for node in made.graph.node:
            for attribute in node.attribute:
                if attribute.name == "N":
                    attribute.i = outputs
        return made

    def _made(self, model: onnx.ModelProto) -> onnx.ModelProto:
        if self._plan.blocks:
            return _blocks(model, self._plan)
        target = self._scratch / "quantized.onnx"
        _int8(model, target)
        found = onnx.load(target)
        target.unlink()
        return found

    def splice(self, model: onnx.ModelProto) -> None:
        """Put the nodes that were made in the place of the products."""
        nodes = [made for node in model.graph.node for made in self.nodes.get(node.name, [node])]
        del model.graph.node[:]
        model.graph.node.extend(_once(nodes))
        if self._plan.blocks:
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _int8(model: onnx.ModelProto, target: Path) -> None:
    """Weights in int8 with a scale a column; inputs are quantized as they come, with one scale a call."""
    with quiet():  # it asks for a preparation that models of one product do not need
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)


def _blocks(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Weights in blocks of a column, each with a scale and a zero point."""
    bits = 4 if plan.scheme == "int4" else 8
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        tool = MatMulNBitsQuantizer(
            model, bits=bits, block_size=plan.block, is_symmetric=False, accuracy_level=plan.level or None
        )
        tool.process()
    found: onnx.ModelProto = tool.model.model
    return found


def _alone(weight: npt.NDArray[np.float32], opset: int) -> onnx.ModelProto:
    """A model of one product by a weight."""
    inputs, outputs = weight.shape
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"], name="product")],
        "product",
        [helper.make_tensor_value_info("input", kind, ["batch", "sequence", inputs])],
        [helper.make_tensor_value_info("output", kind, ["batch", "sequence", outputs])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _part(name: str) -> str:
    """What a tensor of a tool is: ``quantized``, ``scale``, ``zero_point``, ``Q4``, ``scales``, ``zero_points``."""
    return name.removeprefix("weight").strip("_") or "weight"


def _renamed(node: onnx.NodeProto, name: str, renamed: Callable[[str], str]) -> onnx.NodeProto:
    made = helper.make_node(
        node.op_type,
        [renamed(value) for value in node.input],
        [renamed(value) for value in node.output],
        name=name,
        domain=node.domain,
    )
    for attribute in sorted(node.attribute, key=lambda item: item.name):
        made.attribute.add().CopyFrom(attribute)
    return made


def _once(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Inputs that several products share are quantized once: later nodes read what the first one made."""
    first: dict[str, list[str]] = {}
    instead: dict[str, str] = {}
    for node in nodes:
        inputs = [instead.get(value, value) for value in node.input]
        del node.input[:]
        node.input.extend(inputs)
        if node.op_type == "DynamicQuantizeLinear":
            if (made := first.get(inputs[0])) is not None:
                instead |= dict(zip(node.output, made, strict=True))
                continue
            first[inputs[0]] = list(node.output)
        yield node
