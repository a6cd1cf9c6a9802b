"""A saved ML program as its protobuf has it: functions, operations, and where their stored values lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct

ROOT = Path("Data") / "com.apple.CoreML"
MODEL = ROOT / "model.mlmodel"
WEIGHTS = ROOT / "weights" / "weight.bin"
#: What stands for the package's own file of weights.
BLOB = "@model_path/weights/weight.bin"


def load(package: Path) -> Any:
    """The protobuf of a package. Not through the package: coremltools rewrites the manifest of one that it opens."""
    return ct.utils.load_spec(str(package / MODEL))


@dataclass(frozen=True)
class Function:
    """A function: its name, its set of operations, the operations of its one block, and what it takes and gives."""

    name: str
    opset: str
    operations: tuple[Any, ...]
    description: Any


def functions(spec: Any) -> list[Function]:
    """The functions of a program in the order of their names; a package of one function describes it itself."""
    described = {each.name: each for each in spec.description.functions}
    found = []
    for name in sorted(spec.mlProgram.functions):
        function = spec.mlProgram.functions[name]
        block = function.block_specializations[function.opset]
        description = described.get(name, spec.description)
        found.append(Function(name, function.opset, tuple(block.operations), description))
    return found


def operations(spec: Any) -> Iterator[Any]:
    """All operations of all functions."""
    for function in functions(spec):
        yield from function.operations


def given(operation: Any) -> Iterator[tuple[str, Any]]:
    """The values that are written into an operation, by the name of the parameter."""
    yield from operation.attributes.items()
    for name, argument in operation.inputs.items():
        yield from ((name, binding.value) for binding in argument.arguments if binding.HasField("value"))


def stored(operation: Any) -> dict[str, Any]:
    """Those of them that lie in a file, by parameter."""
    return {name: value for name, value in given(operation) if value.HasField("blobFileValue")}
