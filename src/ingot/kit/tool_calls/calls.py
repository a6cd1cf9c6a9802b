"""A call of a function, and JSON values as models write them, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingot.core.digest import read_json


@dataclass(frozen=True)
class Call:
    """A function by its name, and its arguments as JSON values."""

    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The call as files hold it."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    @property
    def canonical(self) -> str:
        """One text for all spellings of the call: the order of arguments and 5.0 for 5 make no other."""
        value = {"name": self.name, "arguments": plain_numbers(dict(self.arguments))}
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def plain_numbers(value: Any) -> Any:
    """The value with whole floats as integers, at any depth."""
    if isinstance(value, dict):
        return {key: plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_value(text: str) -> Any:
    """A JSON value. ValueError for what is none, for keys twice, numbers beyond doubles and halves of characters."""
    try:
        value = read_json(text.encode())
        for leaf in leaves(value):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise ValueError("a number that no double holds")
            if isinstance(leaf, str):
                leaf.encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def leaves(value: Any) -> Iterator[Any]:
    """Whatever holds nothing else, keys too, in order."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value
