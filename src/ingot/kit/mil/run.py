"""A function of a program, checked once and then run: each operation in its order, each result rounded to its type."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.mil.constants import decoder
from ingot.kit.mil.ops import OPERATIONS, Call, Entry
from ingot.kit.mil.ops.moving import update_slice
from ingot.kit.mil.program import Function, Literal, Operation, refused
from ingot.kit.mil.rounding import round16
from ingot.kit.mil.types import Array, TensorType
from ingot.kit.mil.weights import SMALL, Weight, Weights

#: Operations that hand one value on, perhaps in another type.
PASSES = frozenset({"cast", "identity"})


def unsupported(functions: Mapping[str, Function]) -> list[str]:
    """Every operation of a program that is not run here, with where it stands and why."""
    operations = [operation for function in functions.values() for operation in function.operations]
    return [f"{operation.where}: {why}" for operation in operations if (why := _why_not(operation)) is not None]


def _why_not(operation: Operation) -> str | None:
    if operation.kind == "const":
        return None
    if operation.kind.startswith("constexpr_"):
        return None if decoder(operation) is not None else "no such compressed constant is decoded"
    entry = OPERATIONS.get(operation.kind)
    if entry is None:
        return "not one of the operations that are run"
    known = inspect.signature(entry.function).parameters
    more = sorted(set(operation.arguments) - set(known))
    if more:
        return f"its parameter {more[0]} is not known"
    if not entry.integers and any(not kind.dtype.floats for _, kind in operation.outputs):
        return "it is run for floating-point numbers only"
    return None


@dataclass(frozen=True)
class Step:
    """An operation ready to run: what is known before (``fixed``), what is looked up by name, what is freed after."""

    operation: Operation
    entry: Entry
    call: Call
    fixed: dict[str, Any]
    named: tuple[tuple[str, str], ...]
    listed: tuple[tuple[str, tuple[str, ...]], ...]
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What a run is asked for: values to keep by name, and the rows of the last product (None: all)."""

    keep: frozenset[str] = frozenset()
    rows: slice | None = None


class Runner:
    """One function of a package. Check its operations by ``unsupported`` first."""

    def __init__(self, function: Function, weights: Weights, *, narrow: bool) -> None:
        """``narrow``: sums of fp16 results are rounded to fp16 step by step (``Call``)."""
        self.function = function
        self._weights = weights
        self._constants = weights.of(function)
        self._narrow = narrow
        self._steps = self._plan()
        self._in_place = _updates(function)
        #: The product that the function's only output is, where nothing else reads it.
        self.head = _head(function)

    def constants(self) -> Mapping[str, Weight]:
        """The constants by name."""
        return self._constants

    def constant(self, name: str) -> Any:
        """The content of a constant."""
        return self._weights.value(self._constants[name], self._constants)

    def run(self, inputs: Mapping[str, Array], states: dict[str, Array], wanted: Wanted) -> dict[str, Array]:
        """The outputs and what is to be kept, fp16 as fp32; ``states`` has their new content afterwards.

        RefusedInput (E-MIL-RUN) where an operation cannot be computed from what it is given.
        """
        values: dict[str, Any] = dict(inputs)
        names = {*self.function.outputs, *wanted.keep}
        with np.errstate(all="ignore"):
            for step in self._steps:
                self._step(step, values, states, wanted.rows)
                for name in step.frees:
                    if name not in names:
                        values.pop(name, None)
        found = {}
        for name in names:
            found[name] = values[name] if name in values else self.constant(name)
            if wanted.rows is not None and self.head is None and name in self.function.outputs:
                found[name] = found[name][..., wanted.rows, :]
        return found

    def _step(self, step: Step, values: dict[str, Any], states: dict[str, Array], rows: slice | None) -> None:
        arguments = dict(step.fixed)
        for parameter, name in step.named:
            arguments[parameter] = self._look(name, values)
        for parameter, listed in step.listed:
            arguments[parameter] = [self._look(name, values) for name in listed]
        cut = rows is not None and step.operation.outputs and step.operation.outputs[0][0] == self.head
        if cut:
            arguments["x"] = arguments["x"][..., rows, :]
        try:
            if step.operation.kind == "slice_update" and step.operation.outputs[0][0] in self._in_place:
                alone = references(arguments["x"]) <= _ALONE
                results: Any = update_slice(**arguments, in_place=alone)
            elif step.entry.called:
                step.call.states = states
                results = step.entry.function(step.call, **arguments)
            else:
                results = step.entry.function(**arguments)
        except (ValueError, IndexError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
            raise RefusedInput("E-MIL-RUN", f"{step.operation.where} cannot be computed: {error}") from error
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(step.operation.outputs):
            raise refused(
                f"{step.operation.where} gives {len(results)} values, {len(step.operation.outputs)} are declared"
            )
        for (name, kind), result in zip(step.operation.outputs, results, strict=True):
            values[name] = _finish(np.asarray(result), kind, step, loose=rows is not None)

    def _look(self, name: str, values: dict[str, Any]) -> Any:
        return values[name] if name in values else self.constant(name)

    def _plan(self) -> tuple[Step, ...]:
        operations = [operation for operation in self.function.operations if not operation.constant]
        last: dict[str, int] = {}
        for index, operation in enumerate(operations):
            last.update(dict.fromkeys(operation.names(), index))
            last.update({name: max(index, last.get(name, 0)) for name, _ in operation.outputs})
        frees: dict[int, list[str]] = {}
        for name, index in last.items():
            frees.setdefault(index, []).append(name)
        return tuple(self._ready(operation, tuple(frees.get(i, ()))) for i, operation in enumerate(operations))

    def _ready(self, operation: Operation, frees: tuple[str, ...]) -> Step:
        entry = OPERATIONS[operation.kind]
        fixed: dict[str, Any] = {}
        named, listed = [], []
        for parameter, arguments in operation.arguments.items():
            if parameter in entry.lists:
                listed.append((parameter, tuple(self._named(argument, operation) for argument in arguments)))
                continue
            if len(arguments) != 1:
                raise refused(f"{operation.where} has {len(arguments)} values for {parameter}")
            (argument,) = arguments
            if isinstance(argument, Literal):
                fixed[parameter] = self._weights.argument(argument, operation.where, {})
            elif argument in self.function.states:
                fixed[parameter] = argument
            elif (known := self._small(argument)) is not None:
                fixed[parameter] = known
            else:
                named.append((parameter, argument))
        _check_arguments(operation, entry)
        types = tuple(kind for _, kind in operation.outputs)
        kinds = {kind.dtype.name for kind in types}
        call = Call(self._narrow and "fp16" in kinds, _generation(self.function.opset), types, wide="fp32" in kinds)
        return Step(operation, entry, call, fixed, tuple(named), tuple(listed), frees)

    def _named(self, argument: str | Literal, operation: Operation) -> str:
        if isinstance(argument, Literal):
            raise RefusedInput(
                "E-MIL-OP", f"{operation.where} has a written-down value in a list, which is not run here"
            )
        return argument

    def _small(self, name: str) -> Any:
        weight = self._constants.get(name)
        if weight is None or weight.operation.outputs[0][1].elements > SMALL:
            return None
        return self.constant(name)


def _updates(function: Function) -> frozenset[str]:
    """Slices written into what was read of a state, and then written back to it before anything reads the state again.

    They may be written where they are, unless something else still looks at the state (``references``).
    """
    readers = [name for operation in function.operations for name in operation.names()]
    found: set[str] = set()
    read: dict[str, str] = {}  # what was read of a state and has one reader → the state
    updated: dict[str, str] = {}  # state → the update of it that waits to be written
    for operation in function.operations:
        if operation.kind == "read_state":
            state, name = str(operation.arguments["input"][0]), operation.outputs[0][0]
            updated.pop(state, None)
            if readers.count(name) == 1 and name not in function.outputs:
                read[name] = state
        elif operation.kind == "slice_update" and operation.arguments["x"][0] in read:
            updated[read[str(operation.arguments["x"][0])]] = operation.outputs[0][0]
        elif operation.kind == "write_state":
            state = str(operation.arguments["input"][0])
            if state in updated and operation.arguments["data"][0] == updated.pop(state):
                found.add(str(operation.arguments["data"][0]))
    return frozenset(found)


def references(array: Array) -> int:
    """How many hold an array, views of it among them."""
    return sys.getrefcount(array)


def _alone() -> int:
    """The references to a state that nobody but the run holds: by state, by value, by argument."""
    state, values, arguments = {"s": np.zeros(1)}, {}, {}
    values["v"] = arguments["x"] = state["s"]
    return references(arguments["x"])


_ALONE = _alone()


def _check_arguments(operation: Operation, entry: Entry) -> None:
    for name, parameter in inspect.signature(entry.function).parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in operation.arguments and name != "call":
            raise refused(f"{operation.where} lacks its parameter {name}")


def _finish(result: Array, kind: TensorType, step: Step, *, loose: bool) -> Array:
    """A result in its declared type; ``loose`` where rows were left out, so that sizes differ from the declared."""
    if len(result.shape) != len(kind.shape) or not (loose or kind.fits(result.shape)):
        raise refused(f"{step.operation.where} gives the shape {result.shape}, and {kind} is declared")
    result = result.astype(kind.dtype.inside, copy=False)
    return round16(result) if step.entry.rounds and kind.dtype.name == "fp16" else result


def _generation(opset: str) -> int:
    number = opset.removeprefix("CoreML")
    if not number.isdigit():
        raise refused(f"the operation set {opset!r} is not known")
    return int(number)


def _head(function: Function) -> str | None:
    if len(function.outputs) != 1:
        return None
    producers = {name: operation for operation in function.operations for name, _ in operation.outputs}
    readers: dict[str, int] = {}
    for operation in function.operations:
        for name in operation.names():
            readers[name] = readers.get(name, 0) + 1
    name = function.outputs[0]
    at = producers.get(name)
    while at is not None and at.kind in PASSES and not readers.get(name):
        (name,) = (value for value in at.arguments["x"] if isinstance(value, str))
        readers[name] = readers.get(name, 0) - 1
        at = producers.get(name)
    return name if at is not None and at.kind == "linear" and not readers.get(name) else None
