"""One target of a spec: its kind, its own axes, and its parameters checked by the kind for every combination."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from ingot.core import stage
from ingot.core.complaints import Locate, complain, describe, fields_of
from ingot.core.extends import clean_path
from ingot.core.graph import Facts, Implied, MeasuredOf, nothing
from ingot.core.instances import Wire
from ingot.core.matrix import Axis, read_matrix
from ingot.core.names import nearest, suggestion
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.stage import Hidden, Stage
from ingot.core.yaml_reader import Path

#: Fields of every target; all others are parameters of its kind.
RESERVED = ("kind", "from", "matrix", "virtual")


@dataclass(frozen=True)
class Variant:
    """What the kind says for one combination of a target's own axes."""

    facts: Facts
    implied: tuple[Implied, ...] = ()
    measured: MeasuredOf = nothing


@dataclass
class Draft:
    """A target as far as it could be understood. ``sure`` is False when its instances cannot be told."""

    name: str
    kind: str = ""
    stage: type[stage.Stage] | None = None
    written: dict[str, Any] = field(default_factory=dict)
    axes: list[Axis] = field(default_factory=list)
    variants: dict[tuple[str, ...], Variant] = field(default_factory=dict)
    #: The parameters of each variant, and where they are written.
    models: list[tuple[Stage, Locate]] = field(default_factory=list)
    wires: tuple[Wire, ...] = ()
    virtual: bool = False
    sure: bool = True

    @property
    def path(self) -> Path:
        """Where the target is written."""
        return ("targets", self.name)


def read_target(name: str, value: object, problems: Problems) -> Draft:
    """The draft of a target: everything but its roles."""
    draft = Draft(name)
    if not isinstance(value, dict):
        problems.add(draft.path, "E-SPEC-TYPE", f"a target is a mapping of fields, not {describe(value)}")
        draft.sure = False
        return draft
    draft.written = value
    draft.virtual = _virtual(draft, problems)
    draft.stage = _stage(draft, problems)
    if draft.stage is None:
        draft.sure = "matrix" not in value
        return draft
    params = {key: item for key, item in value.items() if key not in RESERVED}
    if "matrix" in value:
        fields = tuple(name for name, _ in fields_of(draft.stage))
        axes = read_matrix(value["matrix"], (*draft.path, "matrix"), fields, set(params), problems)
        draft.axes, draft.sure = axes or [], axes is not None
        if axes is None:
            _mute_axes(draft, fields, problems)
    _resolve(draft, params, problems)
    _check_virtual(draft, problems)
    return draft


def _check_virtual(draft: Draft, problems: Problems) -> None:
    """What is never written must come again as the same stream of tensors whenever something is built from it."""
    if not draft.virtual or draft.stage is None:
        return
    path, hint = (*draft.path, "virtual"), "remove the line: it is written then"
    for model, _locate in draft.models:
        if not model.weightwise():
            what = f"a target of the kind {draft.kind!r} is written whole"
            if type(model).weightwise is not Stage.weightwise:
                what += " with these parameters"
            problems.add(path, "E-SPEC-VALUE", f"{what}: only what maps weights tensor by tensor can be virtual", hint)
            return
        if model.reproduces() != "deterministic" or next(model.found_sources(), None) is not None:
            what = f"the kind {draft.kind!r} does not give the same bytes from its inputs alone: it cannot be virtual"
            problems.add(path, "E-SPEC-VALUE", what, hint)
            return


def _mute_axes(draft: Draft, fields: tuple[str, ...], problems: Problems) -> None:
    """A matrix that cannot be read leaves its parameters without values: that they are missing is not said again."""
    matrix = draft.written["matrix"]
    axes = {nearest(name, fields) or name for name in matrix} if isinstance(matrix, dict) and matrix else set(fields)
    for name in axes - set(draft.written):
        problems.mute((*draft.path, name))
    problems.mute((*draft.path, "matrix"))


def _virtual(draft: Draft, problems: Problems) -> bool:
    virtual = draft.written.get("virtual", False)
    if isinstance(virtual, bool):
        return virtual
    problems.add((*draft.path, "virtual"), "E-SPEC-TYPE", f"must be true or false, not {describe(virtual)}")
    return False


def _stage(draft: Draft, problems: Problems) -> type[stage.Stage] | None:
    if "kind" not in draft.written:
        problems.add((*draft.path, "kind"), "E-SPEC-MISSING", "a required field is missing: kind")
        return None
    kind = draft.written["kind"]
    if not isinstance(kind, str):
        problems.add((*draft.path, "kind"), "E-SPEC-TYPE", f"must be the name of a kind, not {describe(kind)}")
        return None
    if kind not in stage.kinds():
        what = f"unknown kind {shorten(kind)!r}"
        problems.add((*draft.path, "kind"), "E-SPEC-KIND", what, suggestion(kind, stage.kinds()))
        return None
    draft.kind = kind
    return stage.load_kind(kind)


def _resolve(draft: Draft, params: Mapping[str, Any], problems: Problems) -> None:
    """Fill in the variants: one for each combination of the own axes."""
    for own in itertools.product(*(range(len(axis.labels)) for axis in draft.axes)):
        chosen = {axis.param: axis.values[index] for axis, index in zip(draft.axes, own, strict=True)}
        places = {axis.param: axis.paths[index] for axis, index in zip(draft.axes, own, strict=True)}
        variant = _variant(draft, {**params, **chosen}, _locator(draft.path, places, problems), problems)
        if variant is not None:
            labels = tuple(axis.labels[index] for axis, index in zip(draft.axes, own, strict=True))
            draft.variants[labels] = variant


def _locator(target: Path, axes: Mapping[str, Path], problems: Problems) -> Locate:
    def locate(path: Path) -> Path:
        if path and path[0] in axes:
            return (*axes[str(path[0])], *path[1:])
        # What is wrong with the parameters together may be the matrix's fault, so it lies there if that is muted.
        if not path and problems.is_muted((*target, "matrix")):
            return (*target, "matrix")
        return (*target, *path)

    return locate


def _variant(draft: Draft, params: dict[str, Any], locate: Locate, problems: Problems) -> Variant | None:
    assert draft.stage is not None
    model = _validate(draft.stage, params, locate, problems)
    if model is None:
        return None
    draft.models.append((model, locate))
    facts = _facts(draft.kind, model, locate, problems)
    found = [_implied(draft, hidden, locate, problems) for hidden in model.hidden()]
    implied = tuple(item for item in found if item is not None)
    return Variant(facts, implied, model.measured) if len(implied) == len(found) else None


def _implied(draft: Draft, hidden: Hidden, locate: Locate, problems: Problems) -> Implied | None:
    """What a target implies, checked by its own kind; what is wrong is reported where it was asked for."""

    def below(path: Path) -> Path:
        return locate((*hidden.place, *path)) if hidden.place else draft.path

    if hidden.kind not in stage.kinds():
        what = f"kind {draft.kind!r} implies targets of the kind {hidden.kind!r}, which is not there"
        problems.add((*draft.path, "kind"), "E-SPEC-KIND", what)
        return None
    kind = stage.load_kind(hidden.kind)
    model = _validate(kind, json.loads(to_json(dict(hidden.params))), below, problems)
    if model is None:
        return None
    single = tuple(role for role, what in kind.inputs.items() if not what.many)
    facts = _facts(hidden.kind, model, below, problems)
    return Implied(
        facts, hidden.per, tuple(hidden.roles.items()), single, hidden.into, hidden.name, hidden.besides, model.measured
    )


def _validate(
    kind: type[stage.Stage], params: dict[str, Any], locate: Locate, problems: Problems
) -> stage.Stage | None:
    try:
        return kind.model_validate_json(json.dumps(params), strict=True)
    except ValidationError as error:
        complain(error, kind, params, locate, problems)
        return None


def _facts(kind: str, model: stage.Stage, locate: Locate, problems: Problems) -> Facts:
    params = model.model_dump(mode="json", by_alias=True)
    return Facts(
        kind=kind,
        revision=model.revision,
        reproducibility=model.reproduces(),
        seeded=model.reproducibility == "seeded",
        produces=model.produces,
        params=params,
        sources=_sources(model, params, locate, problems),
        tools=tuple(model.tools_used()),
        needs=tuple(model.needs_used()),
        extra=model.extra,
        programs={name: tuple(command) for name, command in model.programs().items()},
        preload=tuple(model.preload),
        network=model.network,
        streams=tuple(model.streams),
        one_pass=model.one_pass,
        windowed=model.windowed(),
        resumes=model.goes_on(),
        device=model.device_wanted(),
        keyless=tuple(model.keyless()),
    )


def _sources(
    model: stage.Stage, params: dict[str, Any], locate: Locate, problems: Problems
) -> tuple[tuple[str, dict[str, Any], str], ...]:
    """Every source with its pointer and base; its paths in ``params`` are made project-relative in place."""
    found = []
    for pointer, _source in model.found_sources():
        path: Path = tuple(int(part) if part.isdigit() else part for part in pointer.split("/")[1:])
        place: Any = params
        for part in path:
            place = place[part]
        where = locate(path)
        base = problems.folder(where)
        if isinstance(place.get("path"), str):
            # Written as {path: …}, or as the text alone where the kind allows it.
            below = (*where, "path") if problems.holds((*where, "path")) else where
            place["path"] = _project_path(place["path"], below, problems)
            base = problems.folder(below)
        elif "paths" in place:
            below = (*where, "paths") if problems.holds((*where, "paths")) else where
            base = problems.folder(below)
            place["paths"] = [
                _project_path(item, (*below, index), problems) for index, item in enumerate(place["paths"])
            ]
        found.append((pointer, dict(place), base))
    return tuple(found)


def _project_path(path: str, where: Path, problems: Problems) -> str:
    clean = clean_path(problems.folder(where), path)
    if clean is None:
        what = f"the path {shorten(path)!r} is not a relative path that stays inside the project"
        problems.add(where, "E-PATH", what, "paths in a spec are relative to the file that writes them")
    return clean or path
