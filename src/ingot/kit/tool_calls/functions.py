"""Functions that a model can call: their descriptions as JSON schemas, and whether a call is one that they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.schemas import Schema
from ingot.kit.tool_calls.calls import Call

#: What BFCL calls types, as JSON schema does; ``any`` is no restriction.
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "list": "array"}
_KNOWN = {"object", "array", "string", "integer", "number", "boolean", "null"}


class Function:
    """A function by its name; ``described`` as the file has it, ``schema`` that of its parameters."""

    def __init__(self, described: Mapping[str, Any], where: str) -> None:
        """RefusedInput (E-TOOLS-QUESTIONS) for a description that says no name and parameters, E-SCHEMA."""
        inner = described.get("function")
        told: Mapping[str, Any] = inner if isinstance(inner, Mapping) else described
        if not isinstance(told.get("name"), str) or not isinstance(told.get("parameters"), Mapping):
            raise RefusedInput("E-TOOLS-QUESTIONS", f"{where}: a function has no name or no parameters")
        self.name: str = told["name"]
        self.parameters: Mapping[str, Any] = told["parameters"]
        self.description = str(told.get("description") or "")
        self.schema: dict[str, Any] = {"additionalProperties": False, **as_schema(self.parameters), "type": "object"}
        self._checked = Schema(self.schema, f"{where}: the description of {self.name!r}")

    @property
    def tool(self) -> dict[str, Any]:
        """The function as chat templates are told of it."""
        told = {"name": self.name, "description": self.description, "parameters": as_schema(self.parameters)}
        return {"type": "function", "function": told}

    def faults(self, call: Call) -> list[str]:
        """What is wrong with the arguments of a call: missing, unknown, of another type, not among the values."""
        return self._checked.faults(dict(call.arguments))


def as_schema(value: Any) -> Any:
    """BFCL's description of a value as a JSON schema; one that is a schema stays as it is."""
    if isinstance(value, list):
        return [as_schema(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: as_schema(item) for key, item in value.items() if key not in ("properties", "enum", "default")}
    found |= {key: value[key] for key in ("enum", "default") if key in value}
    if isinstance(value.get("properties"), Mapping):
        found["properties"] = {name: as_schema(item) for name, item in value["properties"].items()}
    kind = value.get("type")
    if isinstance(kind, str):
        kind = _TYPES.get(kind.lower(), kind)
        found["type"] = kind
        if kind not in _KNOWN:
            del found["type"]
    if isinstance(found.get("required"), bool):  # some write it in the parameter
        del found["required"]
    return found


def faults(call: Call, functions: Mapping[str, Function]) -> list[str]:
    """What is wrong with a call, by the functions that there are; nothing where it is valid."""
    if call.name not in functions:
        return [f"there is no function {call.name!r}"]
    return functions[call.name].faults(call)
