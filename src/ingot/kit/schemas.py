"""JSON schemas: checked when they are read, and values held against them. Nothing is fetched, no pattern can hang.

References lead only into the schema itself. Patterns are matched by ``kit.patterns``, in a process that ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.patterns import Matcher

_FLAGS = re.compile(r"\(\?[aimsux]+\)")


@cache
def _matcher() -> Matcher:
    return Matcher()


def searches(pattern: str, text: str) -> bool:
    """Whether a pattern is found anywhere in a text; RefusedInput as ``Matcher.matches``."""
    flags = _FLAGS.match(pattern)  # of the whole expression: they may stand at its start alone
    first = flags[0] if flags is not None else ""
    return _matcher().matches(rf"{first}[\s\S]*(?:{pattern[len(first) :]})[\s\S]*", text)


class Schema:
    """A JSON schema (draft 2020-12) that values are held against.

    RefusedInput (E-SCHEMA) for what is no schema, refers outside itself, or has ``patternProperties``.
    """

    def __init__(self, schema: Mapping[str, Any], what: str) -> None:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry

        _check(schema, what)
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path))
            raise RefusedInput("E-SCHEMA", f"{what} is no JSON schema: {error.message} (at /{place})") from error
        self._validator: Any = _validator()(schema, registry=Registry())

    def faults(self, value: Any) -> list[str]:
        """What is wrong with a value, in words; nothing where it fits."""
        return [error.message for error in self._validator.iter_errors(value)]


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, ValidationError, validators

    def pattern(_: Any, wanted: str, value: Any, __: Any) -> Iterator[Any]:
        if isinstance(value, str) and not searches(wanted, value):
            yield ValidationError(f"{value!r} does not match {wanted!r}")

    return validators.extend(Draft202012Validator, {"pattern": pattern})


def _check(value: Any, what: str) -> None:
    if isinstance(value, list):
        for item in value:
            _check(item, what)
    elif isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise RefusedInput("E-SCHEMA", f"{what} refers to {reference!r}, and a schema refers to itself alone")
        if isinstance(value.get("patternProperties"), Mapping):
            raise RefusedInput("E-SCHEMA", f"{what} has patternProperties, which are not supported")
        for item in value.values():
            _check(item, what)
