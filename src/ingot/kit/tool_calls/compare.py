"""Calls held against right ones, by abstract syntax: strictly, and by the rules of BFCL (*lax*).

An answer says of each argument which values are right: ``{"unit": ["celsius", "C", ""]}``; an empty text among them
means that the argument may be left out. An argument of which no value is right is never right.

*Strict*: the call is the one of which every argument has its first right value, of the same type (5 is not 5.0); an
argument whose first right value is the empty text is left out, all others are given. Calls stand in the answer's order.

*Lax*, as BFCL's checker for Python has it: each argument has any right value; texts, alone or in a list or an object,
are compared without case, white space and the signs ``, . / - _ * ^``, single quotes as double ones; an integer counts
for a float where the function says so of the argument itself; what may be left out may be absent; required arguments
are there, and no others than the function and the answer know; calls stand in any order. Types are otherwise those of
the function, or that of the right values where these are of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ingot.kit.tool_calls.calls import Call
from ingot.kit.tool_calls.functions import Function

#: Of a call: the name, and the right values of each argument.
Answer = tuple[str, Mapping[str, Sequence[Any]]]

_LEFT_OUT = ""
_UNSAID = re.compile(r"[ ,./\-_*^]")
_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "float": float, "number": float, "boolean": bool, "array": list, "tuple": list,
    "dict": dict, "object": dict, "any": str, "null": type(None),
}  # fmt: skip


def strict(call: Call, answer: Answer) -> bool:
    """Whether a call is the one that the answer names first."""
    name, values = answer
    return call.name == name and all(values.values()) and _same(dict(call.arguments), _first(values))


def _first(values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The first right value of each argument; objects hold right values in their turn."""
    firsts = {key: found[0] for key, found in values.items()}
    return {key: _inner(value) for key, value in firsts.items() if value != _LEFT_OUT}


def _inner(value: Any) -> Any:
    if isinstance(value, list):
        return [_inner(item) for item in value]
    if isinstance(value, dict) and all(isinstance(item, list) and item for item in value.values()):
        return _first(value)
    return value


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def lax_fault(call: Call, answer: Answer, function: Function) -> str | None:
    """Why a call is not the one that is wanted, by BFCL's rules; None where it is."""
    name, values = answer
    if call.name != name:
        return f"{call.name} instead of {name}"
    for argument in function.parameters.get("required") or ():
        if argument not in call.arguments:
            return f"{argument} is missing"
    properties = function.parameters.get("properties") or {}
    for argument, value in call.arguments.items():
        if argument not in properties or argument not in values:
            return f"{argument} is too many"
        if not _right(value, values[argument], properties[argument]):
            return f"{argument} is wrong"
    absent = [key for key, right in values.items() if key not in call.arguments and _LEFT_OUT not in right]
    return f"{absent[0]} is missing" if absent else None


def _right(value: Any, right: Sequence[Any], described: Mapping[str, Any]) -> bool:
    """Whether an argument has one of its right values."""
    wanted = _type(described)
    if wanted is float and type(value) is int:
        value = _as_float(value)
    given = next((type(item) for item in right if item != _LEFT_OUT), wanted)
    if type(value) is not wanted:
        # Where right values are of another type than the function says, the value may be of that type.
        return type(value) is given and value in right
    inner = _type(described.get("items") or {}) if wanted is list else str
    if isinstance(value, list) and not any(_typed(value, item, inner) for item in right):
        return False
    if given is not wanted:
        return value in right
    return any(_equal(value, item, inner) for item in right)


def _type(described: Mapping[str, Any]) -> type:
    return _TYPES.get(str(described.get("type", "any")), str)


def _equal(value: Any, right: Any, inner: type) -> bool:
    """Whether a value of the function's type is a right value; ``inner`` is the type of the items of a list."""
    if type(value) is not type(right):
        return bool(value == right)
    if isinstance(value, dict):
        return _object(value, right)
    if isinstance(value, list):
        return _objects(value, right) if inner is dict else _plain_items(value) == _plain_items(right)
    return plain(value) == plain(right) if isinstance(value, str) else bool(value == right)


def _as_float(value: int) -> float | int:
    try:
        return float(value)
    except OverflowError:
        return value


def _typed(value: Sequence[Any], right: Any, inner: type) -> bool:
    """Whether the items of a list are of the type of its items, or of that of the right list's."""
    if not isinstance(right, list):
        return True
    given = next((type(item) for item in right if item != _LEFT_OUT), None)
    return all(type(item) in (inner, given) for item in value)


def plain(text: str) -> str:
    """A text without what does not count."""
    return _UNSAID.sub("", text).lower().replace("'", '"')


def _plain_items(items: Sequence[Any]) -> list[Any]:
    return [plain(item) if isinstance(item, str) else item for item in items]


def _object(value: Any, right: Any) -> bool:
    """Whether an object has one of the right values at each of its keys, and all keys that must be there."""
    if not isinstance(value, dict) or not isinstance(right, dict):
        return False
    for key, item in value.items():
        if key not in right:
            return False
        if (plain(item) if isinstance(item, str) else item) not in _plain_items(right[key]):
            return False
    return all(key in value or _LEFT_OUT in values for key, values in right.items())


def _objects(value: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(value) == len(right) and all(map(_object, value, right))


def in_order(calls: Sequence[Call], answers: Sequence[Answer]) -> int:
    """How many calls are strictly right, at most, without changing the order of either (longest common part)."""
    best = [0] * (len(answers) + 1)
    for call in calls:
        row = [0]
        for index, answer in enumerate(answers):
            row.append(max(best[index] + strict(call, answer), best[index + 1], row[-1]))
        best = row
    return best[-1]


def in_any_order(calls: Sequence[Call], answers: Sequence[Answer], right: Callable[[Call, Answer], bool]) -> int:
    """How many calls are right, each paired with one answer at the most: a largest matching (augmenting paths)."""
    fits = [[right(call, answer) for answer in answers] for call in calls]
    taken: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for answer, fit in enumerate(fits[call]):
            if fit and answer not in tried:
                tried.add(answer)
                if answer not in taken or place(taken[answer], tried):
                    taken[answer] = call
                    return True
        return False

    return sum(place(call, set()) for call in range(len(calls)))
