"""pydantic's findings about a target's parameters, turned into problems with places and plain sentences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ingot.core.names import nearest, suggestion
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.yaml_reader import Path

#: Where in the document the parameter at a path of the model is written.
Locate = Callable[[Path], Path]

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
}
#: Patterns of parameters → (what a value of that form is, hint).
_FORMS = {
    r"^[0-9a-f]{40}$": ("40 lower-case hex digits", "branches and tags move: give the commit's 40 hex digits"),
    r"^[0-9a-f]{64}$": ("64 lower-case hex digits", None),
}
_SIGNS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
    "string_too_short": ("min_length", "of at least this length:"),
    "string_too_long": ("max_length", "of at most this length:"),
}

#: Of lists and mappings.
_COUNTS = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}


def complain(error: ValidationError, kind: type[BaseModel], raw: object, locate: Locate, problems: Problems) -> None:
    """Add a problem for each finding; the alternatives of a union at one place become one sentence."""
    wanted: dict[Path, dict[str, None]] = {}
    values: dict[Path, object] = {}
    fitting: set[Path] = set()  # values of a type that one alternative takes: that others do not is no news
    for finding in error.errors(include_url=False):
        path, value, rest = _follow(raw, finding["loc"])
        kind_of = str(finding["type"])
        if kind_of == "default_factory_not_called":
            continue  # it only follows from another finding: a default that is made of a value that is not valid
        if kind_of == "extra_forbidden":
            _unknown(kind, path, locate, problems)
        elif kind_of == "missing":
            what = f"a required field is missing: {rest[-1]}" if rest else "a required field is missing"
            problems.add(locate((*path, *map(str, rest[-1:]))), "E-SPEC-MISSING", what)
        elif kind_of == "too_short" and isinstance(value, list) and len(value) >= finding["ctx"]["min_length"]:
            continue  # it only counts the items that are valid, and those that are not are reported themselves
        elif kind_of == "string_pattern_mismatch":
            what, hint = _form(kind, path, str(finding["ctx"]["pattern"]), value)
            fitting.add(path)
            problems.add(locate(path), "E-SPEC-VALUE", what, hint)
        elif kind_of in _WANTED:
            wanted.setdefault(path, {})[_WANTED[kind_of]] = None
            values[path] = value
        else:
            what, hint = _sentence(kind_of, finding.get("ctx", {}), str(finding["msg"]), value)
            fitting.add(path)
            problems.add(locate(path), "E-SPEC-VALUE", what, hint)
    for path, words in wanted.items():
        if path not in fitting:
            _wrong_type(" or ".join(words), values[path], locate(path), problems)


def _follow(raw: object, loc: tuple[str | int, ...]) -> tuple[Path, object, tuple[str | int, ...]]:
    """(the path that exists in ``raw``, the value there, the parts of ``loc`` beyond it, such as union tags)."""
    path: list[str | int] = []
    rest: list[str | int] = []
    for part in loc:
        if (isinstance(raw, dict) and part in raw) or (
            isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        ):
            raw = raw[part]  # type: ignore[index]  # a dict by key or a list by index, as just tested
            path.append(part)
            rest.clear()
        else:
            rest.append(part)
    return tuple(path), raw, tuple(rest)


def unknown_fields(names: Iterable[str], path: Path, known: Collection[str], problems: Problems) -> None:
    """One problem for each name of a field of the mapping at ``path`` that is none of the known ones."""
    for name in names:
        if name not in known:
            what = f"unknown field {shorten(name)!r}"
            problems.add((*path, name), "E-SPEC-FIELD", what, suggestion(name, known), key=True)


def _unknown(kind: type[BaseModel], path: Path, locate: Locate, problems: Problems) -> None:
    choices = list(fields_at(kind, path[:-1]))
    if len(path) == 1:
        choices += ["kind", "from", "matrix", "virtual"]
    hint = suggestion(str(path[-1]), choices)
    problems.add(locate(path), "E-SPEC-FIELD", f"unknown field {shorten(str(path[-1]))!r}", hint, key=True)


def fields_at(kind: type[BaseModel], path: Path) -> Iterator[str]:
    """The names of the fields of the model, or of the models, that a path into ``kind`` leads to."""
    for model in _models_at(kind, path):
        yield from (name for name, _ in fields_of(model))


def _models_at(kind: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [kind]
    for part in path:
        if isinstance(part, str):
            found = [field.annotation for model in models for name, field in fields_of(model) if name == part]
            models = [model for annotation in found for model in _models(annotation)]
    return models


def _form(kind: type[BaseModel], path: Path, pattern: str, value: object) -> tuple[str, str | None]:
    """(what, hint) of a text that does not match its pattern: the field's description says more than the pattern."""
    if pattern in _FORMS:
        wanted, hint = _FORMS[pattern]
        return f"must be {wanted}, not {describe(value)}", hint
    fields = [field for model in _models_at(kind, path[:-1]) for name, field in fields_of(model) if name == path[-1]]
    described = fields[0].description if fields else None
    return f"{describe(value)} is not of the form wanted: {described or pattern}", None


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a model under the names that a spec writes."""
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _wrong_type(wanted: str, value: object, path: Path, problems: Problems) -> None:
    text = problems.raw(path)
    written = text if text is not None else describe(value)
    hint = f'quote it: "{shorten(text)}"' if text and "text" in wanted.split(" or ") else None
    # A number whose text is not what JSON would print (3.10, 1e3) would lose something as text.
    ambiguous = hint is not None and text != describe(value)
    code = "E-SPEC-AMBIGUOUS" if ambiguous else "E-SPEC-TYPE"
    problems.add(path, code, f"must be {wanted}, not {shorten(written)}", hint)


def _sentence(kind_of: str, context: dict[str, Any], message: str, value: object) -> tuple[str, str | None]:
    """(what, hint) of a value of the right type that is not valid."""
    if kind_of == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        near = nearest(value, choices) if isinstance(value, str) else None
        return f"{describe(value)} is not one of {', '.join(choices)}", f"did you mean {near!r}?" if near else None
    if kind_of in _SIGNS:
        name, words = _SIGNS[kind_of]
        return f"must be {words} {context[name]}, not {describe(value)}", None
    if kind_of in _COUNTS:
        name, words = _COUNTS[kind_of]
        items = "1 item" if context[name] == 1 else f"{context[name]} items"
        return f"must have {words} {items}, not {context['actual_length']}", None
    if kind_of in ("value_error", "assertion_error"):
        return str(context["error"]), None
    return message[:1].lower() + message[1:], None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of YAML is a number."""
    return not isinstance(value, bool) and isinstance(value, int | float)


def describe(value: object) -> str:
    """A JSON value in a few words."""
    if isinstance(value, str):
        return repr(shorten(value))
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
