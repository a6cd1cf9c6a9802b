"""What a traced graph must not hold before it is converted: integers of 64 bits on the way to attention.

Core ML has none: they become fp32 or int32 on the way and pull what they touch off the Neural Engine. torch makes them
wherever nobody says otherwise (``arange``, ids, comparisons).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ingot.errors import StageFailed

#: What attention is made of; what flows into one of these is on its path.
_ATTENTION = ("aten::softmax", "aten::matmul", "aten::bmm", "aten::scaled_dot_product_attention", "aten::baddbmm")


def refuse_wide_integers(traced: Any) -> None:
    """StageFailed (E-COREML-INT64) naming the operations whose int64 tensors reach attention.

    Sizes and numbers are no tensors: a trace shows them as ``NumToTensor`` and constants of no dimension, which
    conversion takes away.
    """
    graph = traced.inlined_graph
    nodes = list(_nodes(graph))
    reached = _reaching(nodes)
    names = [f"input {value.debugName()}" for value in graph.inputs() if _is_wide(value) and _name(value) in reached]
    names += [f"buffer {name}" for value, name in _wide_buffers(traced, nodes) if _name(value) in reached]
    for node in nodes:
        if node.kind() in {"prim::NumToTensor", "prim::Constant"}:
            continue
        if any(_is_wide(value) and _name(value) in reached for value in node.outputs()):
            names.append(f"{node.kind()} {_place(node)}".strip())
    if names:
        raise StageFailed(
            "E-COREML-INT64",
            "int64 tensors are on the way to attention in the traced graph",
            facts=names[:5],
            hint="Core ML has no int64; the module that is traced must make them int32",
        )


def _reaching(nodes: Sequence[Any]) -> set[str]:
    """The names of all values that something of attention follows from; nodes come in the order of computation."""
    reached: set[str] = set()
    for node in reversed(nodes):
        if node.kind() in _ATTENTION or any(_name(value) in reached for value in node.outputs()):
            reached |= {_name(value) for value in node.inputs()}
    return reached


def _wide_buffers(traced: Any, nodes: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """Buffers that are int64: a graph gets them as attributes, whose type it does not tell."""
    known = {_name(next(iter(traced.inlined_graph.inputs()))): ("", traced)}
    for node in nodes:
        if node.kind() != "prim::GetAttr" or _name(node.input()) not in known:
            continue
        path, owner = known[_name(node.input())]
        value = getattr(owner, node.s("name"))
        known[_name(node.output())] = f"{path}.{node.s('name')}".removeprefix("."), value
        if isinstance(value, torch.Tensor) and value.dtype == torch.int64:
            yield node.output(), known[_name(node.output())][0]


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _is_wide(value: Any) -> bool:
    kind = value.type()
    return bool(kind.kind() == "TensorType" and kind.scalarType() == "Long")


def _name(value: Any) -> str:
    return str(value.debugName())


def _place(node: Any) -> str:
    """The module that it is in, without anybody's paths."""
    return str(node.scopeName()).rpartition("/")[2].removeprefix("__module.")
