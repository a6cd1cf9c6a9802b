"""The reference of all kinds for people, made from their classes.

``python -m ingot.core.kinds_doc > docs/kinds.md``
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ingot.core import stage
from ingot.core.kinds_text import COMMAND_FILES, FORMATS, HEAD
from ingot.core.roles import ANY_ROLE

_RANGES = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "greater than"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "less than"),
)
_TYPES = {
    "any": "anything",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
}
#: Models that a spec writes in a shorter way than as a mapping.
_SHORT = {"Source": "a path", "Files": "list of paths"}


def text() -> str:
    """The whole page as Markdown."""
    lines = [HEAD]
    for name in stage.kinds():
        lines += _kind(name, stage.load_kind(name))
    return "\n".join(lines)


def _kind(name: str, kind: type[stage.Stage]) -> list[str]:
    lines = [f"## {name}", "", inspect.cleandoc(kind.__doc__ or "").replace("``", "`"), ""]
    extra = f" Needs `pip install ingot[{kind.extra}]`." if kind.extra else ""
    network = " May use the network." if kind.network else ""
    least = "" if kind.reproduces is stage.Stage.reproduces else ", or less by its parameters"
    resumes = " Goes on where it was ended." if kind.resumes else ""
    lines += [f"Reproducibility: {kind.reproducibility.replace('_', ' ')}{least}.{resumes}{extra}{network}", ""]
    lines += [f"**Writes** {FORMATS[kind.produces]}", ""]
    lines += _roles(kind)
    schema = kind.model_json_schema(by_alias=True)
    rows = list(_rows("", schema, schema.get("$defs", {})))
    if rows:
        lines += _table(("parameter", "value", "default", "meaning"), rows)
    if any(line.startswith("| `tasks` | mapping") for line in lines):
        listed = ", ".join(f"[{task}](#{task})" for task in stage.asking_kinds())
        lines += [f"Kinds of tasks (`tasks: {{NAME: {{kind: KIND, …}}}}`), each with its own parameters: {listed}.", ""]
    measured = [(f"`{metric}`", unit, when) for metric, unit, when in kind.measures]
    lines += ["**Measures** (a metric is there only if this build measured it):", ""]
    lines += _table(("metric", "unit", "when"), measured)
    if ANY_ROLE in kind.inputs:
        lines += [COMMAND_FILES]
    return lines


def _roles(kind: type[stage.Stage]) -> list[str]:
    if not kind.inputs:
        return ["**Roles**: none.", ""]
    lines = ["**Roles** (`from:`):", ""]
    filled = stage.filled_roles(kind)
    for name, role in kind.inputs.items():
        shown = "any name" if name == ANY_ROLE else f"`{name}`"
        accepts = " or ".join(sorted(item for item in role.accepts if item != "any")) or "files of any form"
        both = role.either or name == ANY_ROLE
        many = "a list of targets" if role.many else "a target, or a list of them" if both else "one target"
        rest = "; filled by ingot" if name in filled else "; optional" if role.optional else ""
        lines.append(f"- {shown}: {many}; takes {accepts}{rest}")
    return [*lines, ""]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows), ""]


def _rows(prefix: str, model: dict[str, Any], models: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """One row a field, then those of the mappings below it."""
    required = model.get("required", [])
    for name, field in model.get("properties", {}).items():
        below = f"{prefix}{name}"
        default = "required" if name in required else _default(field)
        yield f"`{below}`", _value(field), default, field.get("description", "")
        for one, step in _below(field):
            if one not in _SHORT:
                yield from _rows(f"{below}{step}.", models[one], models)


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "depends"
    if field["default"] is None or ("$ref" in field and _name(field) in _SHORT):
        return "none"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _below(field: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(the model that a field holds, how one gets to it: in a list, or in a mapping of names)."""
    for one in (field, *field.get("anyOf", ())):
        named = _values(one)
        if "$ref" in one:
            yield _name(one), ""
        elif "$ref" in one.get("items", {}):
            yield _name(one["items"]), "[]"
        elif "$ref" in named:
            yield _name(named), ".NAME"


def _values(field: dict[str, Any]) -> dict[str, Any]:
    """What a mapping of names holds; where the names have a form, the schema writes it under that form."""
    any_name = field.get("additionalProperties")
    formed: dict[str, dict[str, Any]] = field.get("patternProperties", {})
    return any_name if isinstance(any_name, dict) else next(iter(formed.values()), {})


def _name(field: dict[str, Any]) -> str:
    return str(field["$ref"]).rpartition("/")[2]


def _value(field: dict[str, Any]) -> str:
    """What may be written, with its range."""
    if "anyOf" in field:
        parts = [_value(one) for one in field["anyOf"] if one.get("type") != "null"]
        if _SHORT["Source"] in parts and parts != [_SHORT["Source"]] and "text" not in parts:
            parts.remove(_SHORT["Source"])  # the mapping is how the choices before it are resolved
        return " or ".join(part for part in parts if part != "text" or _SHORT["Source"] not in parts)
    if "$ref" in field:
        return _SHORT.get(_name(field), "mapping")
    if "const" in field or "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_value(field['items'])}"
    if field.get("type") == "object":
        return f"mapping of names to {_value(_values(field))}"
    ranges = [f"{words} {field[key]}" for key, words in _RANGES if key in field]
    return ", ".join([_TYPES[field.get("type", "any")], *ranges])


if __name__ == "__main__":
    sys.stdout.write(text())
