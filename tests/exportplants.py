"""Exports with something planted in them: weights that lie elsewhere, other numbers, integers that Core ML lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from ingot.core import forecast
from ingot.core.budgets import Budget
from ingot.kit.coreml.traced import refuse_wide_integers
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.proto import modules
from ingot.kit.onnx_model.read import read_model
from ingot.kit.parity.golden import Golden
from ingot.kit.parity.limits import LIMITS
from ingot.kit.parity.prove import prove
from ingot.kit.parity.reference import Reference
from ingot.kit.parity.trace import Array, Trace
from milkit import Function, write

Plant = Callable[[Path], object]


def an_onnx(*, inner: bool = False, link: bool = False, **external: str) -> Plant:
    """Read an ONNX model whose one weight, of 16 bytes, lies where ``external`` says: in a graph within a node, too.

    ``link``: the file beside the model is a symbolic link to another one.
    """

    def plant(folder: Path) -> None:
        model = folder / "model"
        model.mkdir()
        (folder / "secret").write_bytes(bytes(16))
        if link:
            (model / "weights").symlink_to(folder / "secret")
        else:
            (model / "weights").write_bytes(bytes(16))
        tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in external.items():
            tensor.external_data.add(key=key, value=value)
        node = helper.make_node("Add", ["x", "w"], ["y"])
        if inner:
            body = helper.make_attribute("body", helper.make_graph([], "inner", [], [], [tensor]))
            node.attribute.append(body)
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
        graph = helper.make_graph([node], "model", [x], [y], [] if inner else [tensor])
        onnx.save(helper.make_model(graph), model / "model.onnx")
        read_model(model)

    return plant


def a_package(edit: Callable[[Path, Any], object]) -> Plant:
    """Run a Core ML package, ``y = x + w``, after ``edit`` was given its weights' file and where its program names it.

    Where other weights are read than the package's own, the sum is another: then nothing is raised.
    """

    def plant(folder: Path) -> None:
        function = Function()
        function.input("x", "float32", (2, 8))
        function.const("w", np.arange(16, dtype=np.float32).reshape(2, 8), blob=True)
        function.op("add", [("y", "float32", (2, 8))], {"x": "x", "y": "w"})
        function.output("y")
        package = write(folder / "m.mlpackage", function)
        root = package / "Data" / "com.apple.CoreML"
        model = modules()[0].Model.FromString((root / "model.mlmodel").read_bytes())
        constant = model.mlProgram.functions["main"].block_specializations["CoreML8"].operations[0]
        edit(root / "weights" / "weight.bin", constant.attributes["val"].blobFileValue)
        (root / "model.mlmodel").write_bytes(model.SerializeToString())
        MilModel(package).run({"x": np.zeros((2, 8), np.float32)})

    return plant


def linked(weights: Path, _place: Any) -> None:
    """The file of weights is a link that leads out of the package."""
    outside = weights.parents[4] / "secret"
    weights.rename(outside)
    weights.symlink_to(outside)


def unmarked(weights: Path, place: Any) -> None:
    """What lies where the program says is no record."""
    content = bytearray(weights.read_bytes())
    content[place.offset] ^= 1
    weights.write_bytes(content)


def cut(weights: Path, _place: Any) -> None:
    """The last byte is gone."""
    weights.write_bytes(weights.read_bytes()[:-1])


class _Says:
    """An export that shows no layers and gives these logits."""

    def __init__(self, logits: Array) -> None:
        self._logits = logits

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        del ids, probes
        return Trace(self._logits)


def an_export(change: Callable[[Array], Array], precision: str = "float16") -> Plant:
    """Prove an export whose logits are the source's with ``change`` made to them."""

    def plant(_folder: Path) -> None:
        source = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
        reference = Reference((Trace(source),), lambda: (_ for _ in ()).throw(AssertionError("shows no layers")))
        texts = Golden((tuple(range(8)),), "probe texts")
        prove({"prefill": _Says(change(source))}, texts, reference, LIMITS[precision])

    return plant


class _Masked(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Attention whose mask is made of positions in int64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(4)
        hidden = (places[None] > places[:, None]).to(x.dtype) * -1e4
        return torch.softmax(x @ x.transpose(-1, -2) + hidden, dim=-1) @ x


def wide_integers(_folder: Path) -> None:
    """Look at a traced module that reaches attention by way of int64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit.trace is deprecated, and that a trace is of one input
        found = torch.jit.trace(_Masked(), torch.zeros(1, 4, 8))
    refuse_wide_integers(found)


def above_its_budget(_folder: Path) -> None:
    """An export of 9 bytes of weights and 2 a session, where 10 are said to be."""
    found = forecast._no_budget("s:m", Budget(9, 1, 2, memory_bytes=10))
    if found is not None:
        raise found.error()
