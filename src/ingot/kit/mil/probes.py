"""Where a decoder's hidden states are in a program, found by its structure: names say nothing.

The residual stream begins at the gather whose indices come from ``input_ids`` and whose table is a constant. Each layer
adds to it twice: what attention gives, what the feed-forward part gives. So the stream is a chain of ``add`` whose one
operand is the stream and whose other is no constant and has its shape; casts do not end it. What lies between is not
looked at, and a program whose chain is odd or absent is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from ingot.errors import RefusedInput
from ingot.kit.mil.program import Function, Operation
from ingot.kit.mil.run import PASSES
from ingot.kit.mil.types import TensorType


def embedding(function: Function, ids: str) -> Operation:
    """The gather of the embedding. RefusedInput (E-MIL-PROBE) where there is not exactly one."""
    constants = {name for operation in function.operations if operation.constant for name, _ in operation.outputs}
    derived = {ids}
    found = []
    for operation in function.operations:
        read = set(operation.names())
        if operation.kind == "gather" and operation.arguments["x"][0] in constants:
            if operation.arguments["indices"][0] in derived:
                found.append(operation)
        elif read & derived and read <= derived | constants:  # casts, and what makes indices positive
            derived.update(name for name, _ in operation.outputs)
    if len(found) != 1:
        raise _none(f"function {function.name} gathers by {ids} {len(found)} times, and an embedding is gathered once")
    return found[0]


def hidden_states(function: Function, ids: str) -> tuple[str, ...]:
    """The names of the embedding and of what each layer adds up to. RefusedInput (E-MIL-PROBE): no such chain."""
    start = embedding(function, ids)
    readers: dict[str, list[Operation]] = {}
    constants: set[str] = set()
    for operation in function.operations:
        for name in operation.names():
            readers.setdefault(name, []).append(operation)
        if operation.constant:
            constants.update(name for name, _ in operation.outputs)
    chain = [start.outputs[0][0], *_sums(start.outputs[0], readers, constants)]
    if len(chain) % 2 == 0 or len(chain) == 1:
        raise _none(f"function {function.name} adds {len(chain) - 1} times to its embedding, and layers add twice each")
    return tuple(chain[::2])


def _sums(start: tuple[str, TensorType], readers: dict[str, list[Operation]], constants: set[str]) -> Iterator[str]:
    """The sums that follow each other from a value on, each the next to read the one before."""
    stream, kind = {start[0]}, start[1]
    waiting = [start[0]]
    while waiting:
        name = waiting.pop(0)
        following = None
        for operation in readers.get(name, []):
            if operation.kind in PASSES and operation.outputs[0][0] not in stream:
                stream.add(operation.outputs[0][0])
                waiting.append(operation.outputs[0][0])
            elif operation.kind == "add" and _adds(operation, stream, constants, kind):
                following = operation.outputs[0]
        if following is not None:
            yield following[0]
            stream, waiting = {following[0]}, [following[0]]


def _adds(operation: Operation, stream: set[str], constants: set[str], kind: TensorType) -> bool:
    operands = set(operation.names())
    return (
        len(operands) == 2  # a sum of two values
        and bool(operands & stream)
        and not operands & constants
        and not operands <= stream
        and operation.outputs[0][1].shape == kind.shape
    )


def _none(what: str) -> RefusedInput:
    return RefusedInput(
        "E-MIL-PROBE", what, hint="layers can be compared in programs of the decoder that ingot exports"
    )
