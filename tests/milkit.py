"""Core ML packages written by hand, message by message: what coremltools would save, and what it never would."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingot.kit.mil.proto import modules
from ingot.kit.mil.types import Array

_NAMES = {
    "float16": "FLOAT16", "float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "uint16": "UINT16",
    "int32": "INT32", "uint32": "UINT32", "bool": "BOOL", "string": "STRING", "int4": "INT4", "uint1": "UINT1",
    "uint2": "UINT2", "uint3": "UINT3", "uint4": "UINT4", "uint6": "UINT6",
}  # fmt: skip
_BLOB = {"float16": 1, "float32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int4": 8, "uint1": 9,
         "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15, "bool": 3}  # fmt: skip
_FIELDS = {"float32": "floats", "int32": "ints", "bool": "bools"}


def pack(values: Array, bits: int) -> bytes:
    """Elements of fewer than 8 bits, as Python's own integers know them: the lowest bits of one long number first."""
    number = 0
    for index, value in enumerate(values.reshape(-1).tolist()):
        number |= (value & ((1 << bits) - 1)) << (index * bits)
    return number.to_bytes(-(-values.size * bits // 8), "little")


@dataclass
class Blobs:
    """A ``weight.bin`` that grows."""

    data: bytearray = field(default_factory=lambda: bytearray(struct.pack("<II", 0, 2).ljust(64, b"\0")))

    def add(self, kind: str, content: bytes) -> int:
        """Where the record of a new blob is."""
        at = len(self.data)
        self.data += struct.pack("<IIQQQ", 0xDEADBEEF, _BLOB[kind], len(content), at + 64, 0).ljust(64, b"\0")
        self.data += content.ljust(-(-len(content) // 64) * 64, b"\0")
        self.data[:4] = struct.pack("<I", struct.unpack("<I", self.data[:4])[0] + 1)
        return at


def set_type(message: Any, kind: str, shape: Sequence[int | None]) -> None:
    """Fill a ``ValueType``."""
    tensor = message.tensorType
    tensor.dataType = modules()[1].DataType.Value(_NAMES[kind])
    tensor.rank = len(shape)
    for size in shape:
        dimension = tensor.dimensions.add()
        if size is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = size


@dataclass
class Function:
    """A function that is being written."""

    name: str = "main"
    opset: str = "CoreML8"
    blobs: Blobs = field(default_factory=Blobs)

    def __post_init__(self) -> None:
        """An empty function and its description."""
        model, mil = modules()
        self.message, self.description = mil.Function(), model.FunctionDescription(name=self.name)
        self.message.opset = self.opset
        self.block = self.message.block_specializations[self.opset]

    def input(self, name: str, kind: str, *shapes: Sequence[int]) -> str:
        """An input that has one shape, or any of several."""
        given = self.message.inputs.add(name=name)
        same = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
        set_type(given.type, kind, same)
        array = self.description.input.add(name=name).type.multiArrayType
        array.dataType = array.ArrayDataType.Value(_NAMES[kind])
        array.shape.extend(shapes[0])
        for shape in shapes if len(shapes) > 1 else ():
            array.enumeratedShapes.shapes.add().shape.extend(shape)
        return name

    def range(self, name: str, kind: str, *sizes: tuple[int, int]) -> str:
        """An input whose sizes lie between two each."""
        given = self.message.inputs.add(name=name)
        set_type(given.type, kind, [least if least == most else None for least, most in sizes])
        array = self.description.input.add(name=name).type.multiArrayType
        array.dataType = array.ArrayDataType.Value(_NAMES[kind])
        array.shape.extend(least for least, _ in sizes)
        for least, most in sizes:
            array.shapeRange.sizeRanges.add(lowerBound=least, upperBound=most)
        return name

    def state(self, name: str, kind: str, shape: Sequence[int]) -> str:
        """A state."""
        set_type(self.message.inputs.add(name=name).type.stateType.wrappedType, kind, shape)
        return name

    def fill(self, value: Any, content: Any, kind: str | None = None, *, blob: bool = False) -> None:
        """Fill a ``Value``: a string, or an array (of a type with fewer than 8 bits where ``kind`` names one)."""
        if isinstance(content, str):
            set_type(value.type, "string", ())
            value.immediateValue.tensor.strings.values.append(content)
            return
        array = np.asarray(content)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        array = array.astype(np.int32) if array.dtype == np.int64 else array
        kind = kind or str(array.dtype)
        set_type(value.type, kind, array.shape)
        packed = kind.startswith(("int", "uint")) and int(kind.lstrip("uint")) < 8
        data = pack(array, int(kind.lstrip("uint"))) if packed else array.astype(array.dtype).tobytes()
        if blob:
            value.blobFileValue.fileName = "@model_path/weights/weight.bin"
            value.blobFileValue.offset = self.blobs.add(kind, data)
        elif kind in _FIELDS:
            getattr(value.immediateValue.tensor, _FIELDS[kind]).values.extend(array.reshape(-1).tolist())
        else:
            value.immediateValue.tensor.bytes.values = data

    def const(self, name: str, content: Any, kind: str | None = None, *, blob: bool = False) -> str:
        """A constant."""
        operation = self.block.operations.add(type="const")
        self.fill(operation.attributes["val"], content, kind, blob=blob)
        operation.outputs.add(name=name).type.CopyFrom(operation.attributes["val"].type)
        return name

    def op(
        self, operation: str, outputs: Sequence[tuple[str, str, Sequence[int | None]]], arguments: Mapping[str, Any]
    ) -> str:
        """An operation; arguments are names, lists of names, or values (then constants are written for them)."""
        named = {
            key: value if self._known(value) else self.const(f"{outputs[0][0]}_{key}" if outputs else key, value)
            for key, value in arguments.items()
        }
        message = self.block.operations.add(type=operation)
        for key, value in named.items():
            for name in [value] if isinstance(value, str) else value:
                message.inputs[key].arguments.add(name=name)
        for name, kind, shape in outputs:
            set_type(message.outputs.add(name=name).type, kind, shape)
        return outputs[0][0] if outputs else ""

    def _known(self, value: Any) -> bool:
        names = {item.name for item in self.message.inputs}
        names |= {item.name for operation in self.block.operations for item in operation.outputs}
        return (isinstance(value, str) and value in names) or (isinstance(value, list) and set(value) <= names)

    def output(self, *names: str) -> None:
        """What the function gives."""
        self.block.outputs.extend(names)
        for name in names:
            self.description.output.add(name=name).type.multiArrayType.dataType = 65568


def write(path: Path, *functions: Function) -> Path:
    """Save a package of one or more functions, which share their blobs."""
    model = modules()[0].Model(specificationVersion=9)
    model.mlProgram.version = 1
    for function in functions:
        model.mlProgram.functions[function.name].CopyFrom(function.message)
    if len(functions) == 1:
        model.description.input.extend(functions[0].description.input)
        model.description.output.extend(functions[0].description.output)
    else:
        model.description.functions.extend(function.description for function in functions)
        model.description.defaultFunctionName = functions[0].name
    return write_model(path, model, bytes(functions[0].blobs.data))


def write_model(path: Path, model: Any, weights: bytes) -> Path:
    """Save a package of any message and bytes."""
    root = path / "Data" / "com.apple.CoreML"
    (root / "weights").mkdir(parents=True)
    (root / "model.mlmodel").write_bytes(model.SerializeToString(deterministic=True))
    (root / "weights" / "weight.bin").write_bytes(weights)
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {"A": {"path": "com.apple.CoreML/model.mlmodel"}, "B": {"path": "com.apple.CoreML/weights"}},
        "rootModelIdentifier": "A",
    }
    (path / "Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path
