"""The table of operations, and what those see of the call that they are part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ingot.kit.mil.types import MOST_ELEMENTS, Array, TensorType

Function = Callable[..., Any]
#: A truth as an argument of an operation.
Flag = bool | Array


@dataclass
class Call:
    """Of one operation in a running function: ``narrow`` (its sums are rounded to fp16 step by step), ``wide`` (its
    products are summed in fp64), the generation of operations (5 is iOS 15's), types of its results, and the states
    of the run."""

    narrow: bool
    generation: int
    types: tuple[TensorType, ...]
    wide: bool = False
    states: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An operation: ``rounds`` where results are new numbers, ``called`` where it takes the ``Call`` first,
    ``integers`` where it is defined for whole numbers, too, ``lists`` the parameters that are lists of values.

    All parameters but ``call`` are given by name."""

    function: Function
    rounds: bool
    called: bool
    integers: bool
    lists: frozenset[str]


OPERATIONS: dict[str, Entry] = {}


def computes(*names: str, called: bool = False, integers: bool = False) -> Callable[[Function], Function]:
    """Registers a function whose results are rounded."""
    return _register(names, rounds=True, called=called, integers=integers)


def moves(*names: str, called: bool = False, lists: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Registers a function that gives values it was given."""
    return _register(names, rounds=False, called=called, integers=True, lists=lists)


def _register(
    names: tuple[str, ...], *, rounds: bool, called: bool, integers: bool, lists: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for name in names:
            assert name not in OPERATIONS
            OPERATIONS[name] = Entry(function, rounds, called, integers, frozenset(lists))
        return function

    return register


def bounded(*shape: int) -> tuple[int, ...]:
    """A shape that may be made. ValueError for one with more elements than any value may have, or a negative size."""
    if any(size < 0 for size in shape) or prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"the shape {shape} cannot be made (at most {MOST_ELEMENTS} elements)")
    return shape


def sizes(value: Array) -> tuple[int, ...]:
    """A value that says sizes, axes or positions, as plain numbers."""
    return tuple(int(size) for size in value.reshape(-1))
