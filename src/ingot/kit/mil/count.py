"""How many weights a program has: elements of its constants that are a model's parameters, each counted once.

A parameter is a matrix of a product, a bias that is not all zero (coremltools writes zeros where there is none), the
table of the embedding, and any other list of numbers longer than one (norms), whatever axes of size 1 it has.
Compressed ones count as what they are decoded to. Tables of positions and masks have two axes and are in no product,
scales and lookup tables lie inside of compressed constants: neither counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ingot.kit.mil.program import Function
from ingot.kit.mil.run import Runner


def parameters(runners: Mapping[str, Runner]) -> int:
    """The weights of a program: of the function that has most, since each computes with the same ones."""
    return max(_count(runner) for runner in runners.values())


def _count(runner: Runner) -> int:
    found: dict[str, int] = {}
    weights = runner.constants()
    for name in _of(runner.function):
        if name in weights and (kind := weights[name].operation.outputs[0][1]).dtype.floats:
            if _is_bias(runner.function, name) and not runner.constant(name).any():
                continue
            found[weights[name].key] = kind.elements
    return sum(found.values())


def _of(function: Function) -> Iterator[str]:
    """Names that are parameters if they are constants of floating point."""
    for operation in function.operations:
        if operation.constant:
            kind = operation.outputs[0][1]
            if kind.elements > 1 and kind.elements == max(size or 0 for size in kind.shape):
                yield operation.outputs[0][0]
        elif operation.kind == "linear":
            yield from (name for name in operation.arguments["weight"] if isinstance(name, str))
        elif operation.kind == "matmul":
            yield from (name for key in "xy" for name in operation.arguments[key] if isinstance(name, str))
        elif operation.kind == "gather" and len(operation.outputs[0][1].shape) == 3:  # (1, n, hidden)
            yield from (name for name in operation.arguments["x"] if isinstance(name, str))


def _is_bias(function: Function, name: str) -> bool:
    return any(
        operation.kind == "linear" and name in operation.arguments.get("bias", ()) for operation in function.operations
    )
