"""What a package says that it takes and gives: names, types and shapes, by function; other inputs are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.mil.program import Function, refused
from ingot.kit.mil.types import Array, TensorType

_KINDS = {65568: "fp32", 131104: "int32", 65552: "fp16", 65600: "fp64", 131080: "int8"}


@dataclass(frozen=True)
class Declared:
    """One input: its type, and its shapes: those that are listed, or from the least to the most size of each axis.

    ``ranges`` has (least, most) of each axis, most None for no limit; empty where ``shapes`` lists them.
    """

    type: TensorType
    shapes: tuple[tuple[int, ...], ...]
    ranges: tuple[tuple[int, int | None], ...] = ()

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape is taken."""
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                least <= size and (most is None or size <= most)
                for size, (least, most) in zip(shape, self.ranges, strict=True)
            )
        return shape in self.shapes

    def fitting(self, axis: int, size: int) -> int | None:
        """The smallest size of an axis that is taken and not below ``size``; None if there is none."""
        if self.ranges:
            least, most = self.ranges[axis]
            wanted = max(least, size)
            return wanted if most is None or wanted <= most else None
        return min((shape[axis] for shape in self.shapes if shape[axis] >= size), default=None)

    def largest(self, axis: int) -> int | None:
        """The largest size of an axis; None where there is no limit."""
        return self.ranges[axis][1] if self.ranges else max(shape[axis] for shape in self.shapes)

    def describe(self) -> str:
        """The shapes in words."""
        if self.ranges:
            return " × ".join(f"{least}…{'any' if most is None else most}" for least, most in self.ranges)
        return ", ".join("×".join(map(str, shape)) for shape in self.shapes[:12])


@dataclass(frozen=True)
class Interface:
    """A function's inputs, and what else it needs and gives."""

    inputs: Mapping[str, Declared]
    states: Mapping[str, TensorType]
    outputs: tuple[str, ...]

    def check(self, name: str, given: Mapping[str, Any]) -> dict[str, Array]:
        """The inputs as they are computed with. RefusedInput (E-MIL-INPUT) for others than declared."""
        if set(given) != set(self.inputs):
            raise _bad(f"function {name} takes {', '.join(self.inputs)}, and was given {', '.join(given) or 'nothing'}")
        return {key: self._one(key, np.asarray(value)) for key, value in given.items()}

    def _one(self, key: str, value: Array) -> Array:
        declared = self.inputs[key]
        dtype = declared.type.dtype
        if not declared.allows(value.shape):
            raise _bad(f"{key} has the shape {value.shape}", f"shapes that are taken: {declared.describe()}")
        if value.dtype != dtype.outside:
            raise _bad(f"{key} is of type {value.dtype}, and {dtype.name} is declared")
        return value.astype(dtype.inside)


def interfaces(model: Any, functions: Mapping[str, Function]) -> tuple[dict[str, Interface], str]:
    """The interface of each function, and the name of the default one. RefusedInput: E-MIL-PROGRAM."""
    described = {item.name: item for item in model.description.functions}
    if described:
        default = model.description.defaultFunctionName or "main"
    else:
        described, default = {"main": model.description}, "main"
    if set(described) != set(functions) or default not in functions:
        raise refused(f"the package describes the functions {sorted(described)} and has {sorted(functions)}")
    return {name: _interface(described[name], function) for name, function in functions.items()}, default


def _interface(description: Any, function: Function) -> Interface:
    inputs = {}
    for item in description.input:
        kind = function.inputs.get(item.name)
        if kind is None or item.type.WhichOneof("Type") != "multiArrayType":
            raise refused(f"function {function.name} describes the input {item.name}, which it has not as a tensor")
        inputs[str(item.name)] = _declared(item.type.multiArrayType, kind, item.name)
    if set(inputs) != set(function.inputs):
        raise refused(f"function {function.name} has inputs that it does not describe")
    outputs = tuple(str(item.name) for item in description.output)
    if sorted(outputs) != sorted(function.outputs):
        raise refused(f"function {function.name} describes the outputs {outputs} and gives {function.outputs}")
    return Interface(inputs, function.states, function.outputs)


def _declared(array: Any, kind: TensorType, name: str) -> Declared:
    if _KINDS.get(array.dataType) != kind.dtype.name:
        raise refused(f"the input {name} is described as of another type than {kind}")
    which = array.WhichOneof("ShapeFlexibility")
    if which == "shapeRange":
        ranges = tuple(
            (int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound))
            for size in array.shapeRange.sizeRanges
        )
        found = Declared(kind, (), ranges)
        sizes = [tuple(least for least, _ in ranges), tuple(least if most is None else most for least, most in ranges)]
    else:
        listed = [tuple(int(size) for size in shape.shape) for shape in array.enumeratedShapes.shapes]
        found = Declared(kind, tuple(listed or [tuple(int(size) for size in array.shape)]))
        sizes = list(found.shapes)
    if not all(kind.fits(shape) for shape in sizes):
        raise refused(f"the input {name} is described with shapes that {kind} does not have")
    return found


def _bad(what: str, *facts: str) -> RefusedInput:
    return RefusedInput("E-MIL-INPUT", what, facts=facts)
