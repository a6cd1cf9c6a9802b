"""``from:``: which target fills which role, checked against what the kinds accept and produce."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ingot.core.complaints import describe
from ingot.core.instances import MAX_NODES, Instance, TooManyError, Wire, Wiring, bind, topological
from ingot.core.names import is_role, nearest, suggestion
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.stage import Role
from ingot.core.targets import Draft
from ingot.core.yaml_reader import Path

#: A kind with a role of this name takes roles of any name (``command``).
ANY_ROLE = "*"


def read_roles(drafts: Mapping[str, Draft], problems: Problems) -> None:
    """Fill in the wires of every draft; every name in them is that of a target."""
    for draft in drafts.values():
        if "from" in draft.written:
            _read_from(draft, drafts, problems)
        if draft.stage is not None:
            _check_missing(draft, problems)


def _read_from(draft: Draft, drafts: Mapping[str, Draft], problems: Problems) -> None:
    value, path = draft.written["from"], (*draft.path, "from")
    if not isinstance(value, dict):
        what = f"`from` is a mapping of roles to targets, not {describe(value)}"
        problems.add(path, "E-SPEC-TYPE", what, _roles_hint(draft))
        draft.sure = False
        return
    wires = {}
    for name, names in value.items():
        role = _role(draft, name, names, problems)
        wire = _wire(name, role, names, (*path, name), problems)
        found = _existing(wire, role, (*path, name), drafts, problems) if wire else ()
        if wire is None or len(found) < len(wire.names):
            draft.sure = False
        if wire is not None and found:
            wires[name] = Wire(name, wire.many, found)
    declared = [name for name in draft.stage.inputs if name in wires] if draft.stage else []
    draft.wires = tuple(wires[name] for name in (*declared, *sorted(set(wires) - set(declared))))


def _roles_hint(draft: Draft) -> str | None:
    roles = [role for role in draft.stage.inputs if role != ANY_ROLE] if draft.stage else []
    return f"its roles: {', '.join(roles)}" if roles else None


def _role(draft: Draft, name: str, names: object, problems: Problems) -> Role:
    """The role of that name; an unknown one is reported and then taken as it is written."""
    as_written = Role(many=isinstance(names, list))
    if draft.stage is None:
        return as_written
    roles = draft.stage.inputs
    if name in roles and name != ANY_ROLE:
        return replace(roles[name], many=as_written.many) if roles[name].either else roles[name]
    if ANY_ROLE in roles and is_role(name):
        return Role(roles[ANY_ROLE].accepts, many=as_written.many)
    if not roles:
        what, hint = f"the kind {draft.kind!r} has no inputs", None
    else:
        what, hint = f"unknown role {shorten(name)!r} of kind {draft.kind!r}", suggestion(name, roles)
    problems.add((*draft.path, "from", name), "E-SPEC-ROLE", what, hint, key=True)
    draft.sure = False
    return as_written


def _wire(name: str, role: Role, names: object, path: Path, problems: Problems) -> Wire | None:
    if role.many and not isinstance(names, list):
        hint = f"write [{names}]" if isinstance(names, str) else None
        problems.add(path, "E-SPEC-ROLE", f"the role {name!r} takes a list of targets", hint)
        return None
    if not role.many and isinstance(names, list):
        problems.add(path, "E-SPEC-ROLE", f"the role {name!r} takes one target, not a list")
        return None
    items: list[Any] = names if isinstance(names, list) else [names]
    if not items:
        problems.add(path, "E-SPEC-ROLE", f"the role {name!r} needs at least one target")
        return None
    for index, item in enumerate(items):
        here = (*path, index) if role.many else path
        if not isinstance(item, str):
            problems.add(here, "E-SPEC-TYPE", f"must be the name of a target, not {describe(item)}")
            return None
        if item in items[:index]:
            problems.add(here, "E-SPEC-ROLE", f"{shorten(item)!r} is named twice")
            return None
    return Wire(name, role.many, tuple(items))


def _existing(wire: Wire, role: Role, path: Path, drafts: Mapping[str, Draft], problems: Problems) -> tuple[str, ...]:
    """The names in a wire that are targets (or instances of targets) of a format that the role accepts."""
    found = []
    for index, name in enumerate(wire.names):
        here = (*path, index) if wire.many else path
        source = drafts.get(name.partition("@")[0])
        if source is None:
            near = nearest(name, drafts)
            hint = f"did you mean {near!r}?" if near else "targets are defined under `targets:`"
            problems.add(here, "E-SPEC-INPUT", f"there is no target {shorten(name)!r}", hint)
            continue
        found.append(name)
        if source.stage is not None and not _fits(source.stage.produces, role):
            what = (
                f"{name!r} is a {source.stage.produces}, and the role {wire.role!r} takes {' or '.join(role.accepts)}"
            )
            problems.add(here, "E-SPEC-ROLE", what)
    return tuple(found)


def _fits(produced: str, role: Role) -> bool:
    return produced == "any" or "any" in role.accepts or produced in role.accepts


def _check_missing(draft: Draft, problems: Problems) -> None:
    assert draft.stage is not None
    implied = {it.into for variant in draft.variants.values() for it in variant.implied if it.into is not None}
    written = draft.written.get("from")
    given = set(written) if isinstance(written, dict) else set()
    for role in sorted(implied & given):
        path = (*draft.path, "from", role)
        problems.add(path, "E-SPEC-ROLE", f"the role {role!r} is filled by ingot; remove it", key=True)
    if "from" in draft.written and not isinstance(written, dict):
        return  # reported already
    misspelt = {nearest(name, draft.stage.inputs) for name in given - set(draft.stage.inputs)}
    for role, what in draft.stage.inputs.items():
        # Without variants it is not known which list roles are implied.
        unknown = what.many and not draft.variants
        if not (role == ANY_ROLE or what.optional or role in given | misspelt or role in implied or unknown):
            example = f"[{what.accepts[0].upper()}, …]" if what.many else "TARGET"
            hint = f"from: {{{role}: {example}}}"
            problems.add((*draft.path, "from", role), "E-SPEC-ROLE", f"the role {role!r} is not filled", hint)
            draft.sure = False
    _check_misfits(draft, given, misspelt, problems)


def _check_misfits(draft: Draft, given: set[str], misspelt: set[str | None], problems: Problems) -> None:
    """What the kind says of its parameters together with its roles; a role that was misspelt is reported already."""
    for model, locate in draft.models:
        for name, what in model.misfits(frozenset(given)):
            if name in given or name in model.inputs:
                if name not in misspelt:
                    hint = None if name in given else f"from: {{{name}: TARGET}}"
                    problems.add((*draft.path, "from", name), "E-SPEC-ROLE", what, hint, key=True)
            else:
                problems.add(locate((name,)), "E-SPEC-VALUE", what)


def instances(drafts: Mapping[str, Draft], problems: Problems) -> dict[str, tuple[Instance, ...]]:
    """The instances of every target whose instances can be told. Reports cycles and unknown instances."""
    edges = {name: Wiring(draft.wires).targets() for name, draft in drafts.items()}
    order, cycles = topological(edges)
    for cycle in cycles:
        path = _step(drafts[cycle[0]], (*cycle, cycle[0])[1])
        problems.add(path, "E-SPEC-CYCLE", f"a cycle: {' -> '.join((*cycle, cycle[0]))}")
    looped = {name for cycle in cycles for name in cycle}
    known: dict[str, tuple[Instance, ...]] = {}
    for name in order:
        draft = drafts[name]
        if draft.sure and name not in looped and all(source in known for source in edges[name]):
            if not _pins_exist(draft, known, problems):
                continue
            axes = tuple((axis.param, axis.labels) for axis in draft.axes)
            try:
                known[name] = bind(name, Wiring(draft.wires, axes), known)
            except TooManyError:
                problems.add(draft.path, "E-SPEC-MATRIX", "too many instances, counting inherited axes", key=True)
            if sum(map(len, known.values())) > MAX_NODES:
                problems.add(draft.path, "E-SPEC-MATRIX", f"more than {MAX_NODES:,} instances up to here", key=True)
                break
    return known


def _step(draft: Draft, to: str) -> Path:
    """Where a target names another one."""
    return next(path for path, name in _names(draft) if name.partition("@")[0] == to)


def _names(draft: Draft) -> Iterator[tuple[Path, str]]:
    """Each name in ``from:`` of a target, and where it is written."""
    for role, names in draft.written["from"].items():
        path = (*draft.path, "from", role)
        if isinstance(names, str):
            yield path, names
        elif isinstance(names, list):
            yield from (((*path, index), name) for index, name in enumerate(names) if isinstance(name, str))


def _pins_exist(draft: Draft, known: Mapping[str, tuple[Instance, ...]], problems: Problems) -> bool:
    if "from" not in draft.written:
        return True
    good = True
    for path, name in _names(draft):
        target, pinned, _ = name.partition("@")
        names = [instance.name for instance in known[target]]
        if pinned and name not in names:
            problems.add(path, "E-SPEC-INPUT", f"there is no instance {shorten(name)!r}", suggestion(name, names))
            good = False
    return good
