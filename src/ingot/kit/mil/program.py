"""An ML program as plain values: functions, operations, what they read and what they give.

Whatever is not sound is refused when the program is read (E-MIL-PROGRAM): a name that nothing defined before, one that
is defined twice, an argument that is no value, operations within operations (loops and branches, which no export has).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.mil import proto
from ingot.kit.mil.types import StateType, TensorType, read_type


@dataclass(frozen=True)
class Literal:
    """A value that is written down: its type and the ``MIL.Value`` that holds it."""

    type: TensorType
    value: Any

    @property
    def file(self) -> str | None:
        """The weight file that holds it; None where it is in the program itself."""
        return str(self.value.blobFileValue.fileName) if self.value.HasField("blobFileValue") else None

    def key(self) -> str:
        """Equal for equal values: where it lies, or what it is."""
        if self.file is not None:
            return f"{self.file}@{self.value.blobFileValue.offset}:{self.type}"
        return f"{self.type}={self.value.immediateValue.SerializeToString(deterministic=True).hex()}"


#: What an operation reads: the name of a value, or a value that is written down.
Argument = str | Literal


@dataclass(frozen=True)
class Operation:
    """One operation: its kind, what it reads by parameter, names and types of what it gives, and where it stands."""

    kind: str
    arguments: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, TensorType], ...]
    where: str

    def names(self) -> Iterator[str]:
        """The values that it reads by name."""
        for arguments in self.arguments.values():
            for argument in arguments:
                if isinstance(argument, str):
                    yield argument

    @property
    def constant(self) -> bool:
        """Whether it only holds a value, plain or compressed."""
        return self.kind == "const" or self.kind.startswith("constexpr_")


@dataclass(frozen=True)
class Function:
    """A function: inputs and states by name, operations in the order in which they run, names of its outputs."""

    name: str
    opset: str
    inputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def types(self) -> dict[str, TensorType]:
        """The types of all values but states."""
        found = dict(self.inputs)
        for operation in self.operations:
            found.update(operation.outputs)
        return found


def read_program(model: Any) -> dict[str, Function]:
    """All functions of a ``Model`` message. RefusedInput: E-MIL-PROGRAM."""
    functions = model.mlProgram.functions
    if not functions:
        raise refused("the program has no functions")
    return {name: _function(name, functions[name]) for name in sorted(functions)}


def refused(what: str, *facts: str) -> RefusedInput:
    """A program that is not sound."""
    return RefusedInput("E-MIL-PROGRAM", what, facts=facts)


def _function(name: str, message: Any) -> Function:
    block = message.block_specializations.get(message.opset)
    if block is None:
        raise refused(f"function {name} has no block for its operation set {message.opset!r}")
    names = proto.modules()[1].DataType
    inputs: dict[str, TensorType] = {}
    states: dict[str, TensorType] = {}
    for item in message.inputs:
        kind = read_type(item.type, names, f"input {item.name} of function {name}")
        if item.name in inputs or item.name in states:
            raise refused(f"function {name} has the input {item.name} twice")
        if isinstance(kind, StateType):
            states[item.name] = kind.tensor
        else:
            inputs[item.name] = kind
    operations = tuple(_operation(item, name, index) for index, item in enumerate(block.operations))
    function = Function(name, message.opset, inputs, states, operations, tuple(block.outputs))
    _check_names(function)
    return function


def _operation(message: Any, function: str, index: int) -> Operation:
    names = proto.modules()[1].DataType
    outputs = []
    label = message.outputs[0].name if message.outputs else message.type
    where = f"{message.type} ({label}, operation {index} of function {function})"
    if len(message.blocks):
        raise RefusedInput("E-MIL-OP", f"{where} holds operations of its own, which are not run here")
    for item in message.outputs:
        kind = read_type(item.type, names, f"the output {item.name} of {where}")
        if isinstance(kind, StateType):
            raise refused(f"{where} gives a state")
        outputs.append((str(item.name), kind))
    arguments: dict[str, tuple[Argument, ...]] = {}
    for key in message.attributes:
        if key != "name":
            arguments[key] = (_literal(message.attributes[key], where),)
    for key in message.inputs:
        arguments[key] = tuple(_argument(binding, where) for binding in message.inputs[key].arguments)
    return Operation(str(message.type), arguments, tuple(outputs), where)


def _argument(binding: Any, where: str) -> Argument:
    which = binding.WhichOneof("binding")
    if which == "name":
        return str(binding.name)
    if which == "value":
        return _literal(binding.value, where)
    raise refused(f"an argument of {where} is no value")


def _literal(value: Any, where: str) -> Literal:
    kind = read_type(value.type, proto.modules()[1].DataType, f"a constant of {where}")
    if isinstance(kind, StateType):
        raise refused(f"a constant of {where} is a state")
    return Literal(kind, value)


def _check_names(function: Function) -> None:
    known = {*function.inputs, *function.states}
    for operation in function.operations:
        for name in operation.names():
            if name not in known:
                raise refused(f"{operation.where} reads {name!r}, which nothing before it gives")
        for name, _ in operation.outputs:
            if name in known:
                raise refused(f"{operation.where} gives {name!r}, which exists before it")
            known.add(name)
    for name in function.outputs:
        if name not in known or name in function.states:
            raise refused(f"function {function.name} gives {name!r}, which nothing in it gives")
