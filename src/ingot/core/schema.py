"""The JSON schema (draft 2020-12) of a spec file, so that editors complete and check specs: ``doit schema``.

It holds one definition a kind, chosen by ``kind:``. A spec with ``extends:`` holds parts of targets, so there only the
outer form is checked. What a schema cannot say (whether a target exists, cycles, formats) the reader checks.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from ingot.core import stage
from ingot.core.gate_presets import PRESETS
from ingot.core.roles import ANY_ROLE
from ingot.core.spec_budget import SIZE_PATTERN
from ingot.core.spec_prices import LONGEST, NUMBERS
from ingot.core.verdicts import BOUNDS, Severity, Undecided

_TARGET = "^[a-z0-9][a-z0-9_-]{0,63}$"
_SPEC = "^[a-z0-9][a-z0-9._-]{0,63}$"
_ROLE = "^[a-z][a-z0-9_]{0,63}$"
_LABEL = "^[A-Za-z0-9._-]{1,40}$"
_INPUT = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9_-]{0,63}(@[A-Za-z0-9._+-]+)?$"}


def schema() -> dict[str, Any]:
    """The schema of a whole spec file."""
    definitions: dict[str, Any] = {"any-target": _any_target(), "one-gate": _gate()}
    for name in stage.kinds():
        definitions |= _kind(name, stage.load_kind(name))
    targets = _targets({"$ref": "#/$defs/any-target"})
    whole = {"required": ["format", "name", "targets"], "properties": {"targets": targets}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A spec of ingot",
        "type": "object",
        "properties": {
            "format": {"const": 1, "description": "The version of this file format."},
            "name": {"type": "string", "pattern": _SPEC, "description": "The first half of every task: NAME:TARGET."},
            "description": {"type": "string", "description": "A line for people; changes nothing."},
            "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "The seed of all seeded kinds."},
            "extends": {
                "type": "string",
                "description": "A spec file, relative to this one, that this is merged over.",
            },
            "targets": {"type": "object", "description": "What is built: name → kind, parameters and inputs."},
            "gates": _gates(),
            "prices": _prices(),
            "budget": _budget(),
        },
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "then": {"required": ["name"], "properties": {"targets": _targets({"type": ["object", "null"]})}},
        "else": whole,
        "$defs": definitions,
    }


def _targets(one: dict[str, Any]) -> dict[str, Any]:
    return {"minProperties": 1, "propertyNames": {"pattern": _TARGET}, "additionalProperties": one}


def _gates() -> dict[str, Any]:
    share = {"type": ["number", "null"]}
    severity = {"enum": list(get_args(Severity))}
    changes = {"type": "object", "properties": {"severity": severity}, "additionalProperties": share}
    one = {"enum": list(PRESETS)}
    several = {"type": "array", "items": one}
    preset = {"anyOf": [one, several, {"type": "object", "additionalProperties": changes, "propertyNames": one}]}
    return {
        "type": "object",
        "properties": {
            "presets": {
                "type": "object",
                "additionalProperties": preset,
                "description": "Limits for a role, by target: NAME, or {NAME: {METRIC: NUMBER or null}}.",
            },
            "regression": _regression(),
        },
        "additionalProperties": {"$ref": "#/$defs/one-gate"},
        "description": 'Limits of measurements: "TARGET.METRIC" → {max: NUMBER}.',
    }


def _regression() -> dict[str, Any]:
    """How candidates are compared with what is active."""
    rule = {
        "type": "object",
        "properties": {
            "severity": {"enum": list(get_args(Severity))},
            "undecided": {"enum": list(get_args(Undecided))},
            "metrics": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "margin": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        },
        "additionalProperties": False,
    }
    what = "Whether candidates must be no worse than what was promoted last, and by how much they may be."
    return {"anyOf": [{"type": "boolean"}, rule], "default": True, "description": what}


def _gate() -> dict[str, Any]:
    number = {"type": "number"}
    other = {"type": "string", "description": "A node of the spec, or reference, last_good, active."}
    return {
        "type": "object",
        "properties": {
            "max": number,
            "min": number,
            "bound": {"enum": list(BOUNDS), "default": "value"},
            "relative_to": other,
            "minus": other,
            "severity": {"enum": list(get_args(Severity)), "default": "fail"},
            "undecided": {"enum": list(get_args(Undecided)), "default": "warn"},
        },
        "additionalProperties": False,
        "anyOf": [{"required": ["max"]}, {"required": ["min"]}],
        "not": {"required": ["relative_to", "minus"]},
    }


def _prices() -> dict[str, Any]:
    price = {"type": "number", "minimum": 0}
    return {
        "type": "object",
        "properties": {**dict.fromkeys(NUMBERS, price), "currency": {"type": "string", "maxLength": LONGEST}},
        "required": ["currency"],
        "additionalProperties": False,
        "anyOf": [{"required": [name]} for name in NUMBERS],
        "description": "What an hour of the machine and of a GPU costs; with them builds tell what they cost.",
    }


def _budget() -> dict[str, Any]:
    size = {"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 1}]}
    return {
        "type": "object",
        "properties": {
            "memory": {**size, "description": "Of the machine that exports are to run on: 64GB, 16GiB or bytes."},
            "targets": {"type": "object", "additionalProperties": size, "description": "Another memory, by target."},
        },
        "minProperties": 1,
        "additionalProperties": False,
        "description": "What exports may take where they run; the plan says what they do, and refuses what cannot fit.",
    }


def _any_target() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(stage.kinds()), "description": "What builds this target."}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in stage.kinds()
        ],
    }


def _kind(name: str, kind: type[stage.Stage]) -> dict[str, Any]:
    """The definitions that a kind needs: its own, and those of the models among its parameters, prefixed."""
    model = kind.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
    below = {f"{name}.{key}": value for key, value in model.pop("$defs", {}).items()}
    files = below.get(f"{name}.{stage.Files.__name__}")
    if files is not None:
        # ``files:`` is written as the list alone; the mapping is its resolved form.
        below[f"{name}.{stage.Files.__name__}"] = {"anyOf": [{"type": "array", "items": {"type": "string"}}, files]}
    params = _with_tasks(kind, model.get("properties", {}), below)
    own = {
        "type": "object",
        "description": (kind.__doc__ or "").strip().partition("\n")[0],
        "properties": {
            "kind": {"const": name},
            "from": _from(kind),
            "virtual": _virtual(kind),
            **({"matrix": _matrix(params)} if params else {}),
            **params,
        },
        "required": ["kind", *(["from"] if _required_roles(kind) else [])],
        "additionalProperties": False,
        "allOf": [_given(field) for field in model.get("required", [])],
    }
    if not own["allOf"]:
        del own["allOf"]
    return {name: own, **below}


def _with_tasks(kind: type[stage.Stage], params: dict[str, Any], below: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The parameters of a kind; those of a report know what each kind of task takes."""
    field = kind.model_fields.get("tasks")
    if field is None or "patternProperties" not in params["tasks"]:
        return params
    task: dict[str, Any] = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(stage.asking_kinds()), "description": "What asks every candidate."}},
        "allOf": [],
    }
    for name in stage.asking_kinds():
        asked = _kind(name, stage.load_kind(name))[name]
        given = {key: value for key, value in asked["properties"].items() if key not in ("from", "virtual", "matrix")}
        required = stage.load_kind(name).model_json_schema(by_alias=True).get("required", [])
        below[f"task.{name}"] = {
            "type": "object",
            "description": asked["description"],
            "properties": given,
            "required": ["kind", *required],
            "additionalProperties": False,
        }
        chosen = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
        task["allOf"].append({"if": chosen, "then": {"$ref": f"#/$defs/task.{name}"}})
    named = dict.fromkeys(params["tasks"]["patternProperties"], task)
    return {**params, "tasks": {**params["tasks"], "patternProperties": named, "additionalProperties": False}}


def _virtual(kind: type[stage.Stage]) -> dict[str, Any]:
    """Which parameters let a target be virtual, the reader of specs knows; the schema, whether any do."""
    if kind.weightwise is stage.Stage.weightwise:
        return {"const": False, "description": "Targets of this kind are always written."}
    return {"type": "boolean", "default": False, "description": "Streamed into what is built from it; never written."}


def _given(param: str) -> dict[str, Any]:
    """A required parameter is set in the target or in its matrix."""
    in_matrix = {"required": ["matrix"], "properties": {"matrix": {"required": [param]}}}
    return {"anyOf": [{"required": [param]}, in_matrix]}


def _matrix(params: dict[str, Any]) -> dict[str, Any]:
    def axis(value: dict[str, Any]) -> dict[str, Any]:
        bare = {key: item for key, item in value.items() if key not in ("default", "description", "title")}
        labelled = {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "propertyNames": {"pattern": _LABEL},
            "additionalProperties": bare,
        }
        scalar = {"allOf": [bare, {"type": ["string", "number", "boolean", "null"]}]}
        return {"type": "array", "minItems": 1, "items": {"anyOf": [scalar, labelled]}}

    return {
        "type": "object",
        "minProperties": 1,
        "description": "Parameters to lists of values: one instance for each combination.",
        "properties": {name: axis(value) for name, value in params.items()},
        "additionalProperties": False,
    }


def _required_roles(kind: type[stage.Stage]) -> list[str]:
    filled = (ANY_ROLE, *stage.filled_roles(kind))
    return [name for name, role in kind.inputs.items() if name not in filled and not role.optional]


def _from(kind: type[stage.Stage]) -> dict[str, Any]:
    several = {"type": "array", "items": _INPUT, "minItems": 1, "uniqueItems": True}
    filled = (ANY_ROLE, *stage.filled_roles(kind))
    either = {"anyOf": [_INPUT, several]}
    roles = {
        name: {
            **(either if role.either else several if role.many else _INPUT),
            "description": f"Takes: {', '.join(role.accepts)}.",
        }
        for name, role in kind.inputs.items()
        if name not in filled
    }
    found: dict[str, Any] = {
        "type": "object",
        "description": "The targets that this one reads, by role.",
        "properties": roles,
        "required": _required_roles(kind),
        "additionalProperties": False,
    }
    if ANY_ROLE in kind.inputs:
        found["patternProperties"] = {_ROLE: either}
    return found


def text() -> str:
    """The schema as a JSON file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
