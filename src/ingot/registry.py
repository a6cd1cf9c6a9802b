"""The registry for programs: the same answers as ``doit show --json`` and ``doit history --json``.

    from ingot import registry

    receipt = registry.active("smollm2-pydoc:gguf@Q4_0")  # or latest, or last_good
    receipt["digest"], receipt["metrics"]["bytes"]["value"]

Every function reads the project that ``root`` (by default the current folder) lies in; nothing is built or changed.
The fields are documented in ``docs/json.md``. Errors are those of ``ingot.errors``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.errors import SpecError, UsageError

if TYPE_CHECKING:
    from ingot.core.graph import Node, SpecGraph
    from ingot.core.project import Project
    from ingot.core.registry import Entry
    from ingot.core.standing import Standing

#: What ``latest`` gives first, in this order; what else a receipt holds follows.
_ORDER = (
    "target", "kind", "revision", "key", "key_parts", "digest", "inputs", "files", "metrics", "environment", "timings",
    "built_at",
)  # fmt: skip


def latest(target: str, root: Path | None = None) -> dict[str, Any]:
    """The receipt of a target's newest result. UsageError: E-TARGET (no such target), E-NOT-BUILT (never built)."""
    return receipt_of_target(open_log(root), target)


def active(target: str, root: Path | None = None) -> dict[str, Any]:
    """The receipt of a target's active result, with the ``decision`` that made it active.

    UsageError: E-TARGET, E-NOT-BUILT, E-NOT-ACTIVE (nothing of it was promoted).
    """
    project = open_log(root)
    standing = _standing(project)
    decision = standing.active(target)
    if decision is None:
        if target not in project.index.latest:
            raise _not_built(project, target)
        what = f"no result of {target} was promoted"
        raise UsageError("E-NOT-ACTIVE", what, hint=f"make one active: doit promote {target}")
    receipt = standing.result_of(decision)
    if receipt is None:
        raise _nowhere(target)
    return _presented(project, target, receipt) | {"decision": decision.to_dict()}


def last_good(target: str, root: Path | None = None) -> dict[str, Any]:
    """The receipt of the newest result of a target that no recorded failure of a gate concerns.

    UsageError: E-TARGET, E-NOT-BUILT, E-NOT-GOOD (a gate failed for every result).
    """
    project = open_log(root)
    if target not in project.index.latest:
        raise _not_built(project, target)
    receipt = _standing(project).last_good(target)
    if receipt is None:
        what = f"a gate failed for every result of {target}"
        raise UsageError("E-NOT-GOOD", what, hint=f"doit history {target.partition(':')[0]} shows the failures")
    return _presented(project, target, receipt)


def standing_of(project: Project, name: str) -> list[dict[str, Any]]:
    """What ``doit show --active NAME --json`` lists; UsageError (E-TARGET) for a name that means nothing."""
    from ingot.core.lookup import is_about

    standing, nodes = _standing(project), declared(project)
    known = _known(project, nodes, standing)
    specs = {node.spec for node in nodes.values()}
    visible = {node.id for node in nodes.values() if not node.hidden} | standing.stacks.keys()
    # Of a spec that cannot be read here the log knows the targets; the steps of a report have a dot in their name.
    visible |= {it for it in known if it.partition(":")[0] not in specs and "." not in _name(it)}
    _require(name, known)
    chosen = [target for target in [*nodes, *sorted(known - nodes.keys())] if is_about(target, name)]
    return [_stands(project, standing, target) for target in chosen if target in visible or target == name]


def require_known(project: Project, name: str) -> None:
    """UsageError (E-TARGET) for a name that neither a spec nor the log knows."""
    from ingot.core.lookup import is_about

    if not any(is_about(target, name) for target in project.index.latest):
        _require(name, _known(project, declared(project), _standing(project)))


def _known(project: Project, nodes: Mapping[str, Node], standing: Standing) -> set[str]:
    return {*nodes, *project.index.latest, *standing.stacks}


def _require(name: str, known: set[str]) -> None:
    from ingot.core.lookup import is_about

    if not any(is_about(target, name) for target in known):
        raise unknown_target(name, {form for target in known for form in (target, target.partition(":")[0])})


def _name(target: str) -> str:
    """The name in the spec, without the values of a matrix."""
    return target.partition(":")[2].partition("@")[0]


def _stands(project: Project, standing: Standing, target: str) -> dict[str, Any]:
    """The three answers for one target, each a digest and where the log says so."""
    decision, newest = standing.active(target), project.index.latest.get(target)
    good, found = standing.last_good(target), None
    receipt = None if decision is None else standing.result_of(decision)
    if receipt is not None:
        found = project.store.presence(str(receipt["digest"]), receipt["files"])[0] == "present"
    return {
        "target": target,
        "active": None if decision is None else {"digest": decision.digest, **decision.to_dict()},
        "latest": None if newest is None else {name: newest[name] for name in ("digest", "time", "origin", "index")},
        "last_good": None if good is None else {"digest": good["digest"]},
        "is_latest": decision is not None and newest is not None and decision.digest == newest["digest"],
        "is_last_good": decision is not None and good is not None and decision.digest == good["digest"],
        "present": found,
    }


def _standing(project: Project) -> Standing:
    from ingot.core.standing import Standing

    return Standing(project)


def history(name: str | None = None, root: Path | None = None) -> list[dict[str, Any]]:
    """The entries of all logs, oldest first; of one spec or target where ``name`` says so. UsageError (E-TARGET)."""
    project = open_log(root)
    return [described(entry, project) for entry in entries_about(project, name)]


def entries(root: Path | None = None) -> Iterator[dict[str, Any]]:
    """Every entry with its in-toto statement as signed: ``{"origin", "index", "statement"}``, oldest first."""
    for entry in open_log(root).registry.entries():
        yield {"origin": entry.origin, "index": entry.index, "statement": dict(entry.statement)}


def open_log(root: Path | None = None) -> Project:
    """The project without its specs: the log can be read although a spec is broken. UsageError (E-PROJECT)."""
    from ingot.core.project import Project, find_root

    return Project(find_root(Path.cwd() if root is None else root.resolve()), [])


def declared(project: Project) -> dict[str, Node]:
    """The targets that the specs declare now, in folders below too, by id; bad specs declare nothing."""
    from ingot.core.spec_cache import load_graphs, spec_files

    if project.graphs:
        return dict(project.nodes)
    root, files = project.root, spec_files(project.root)
    try:
        graphs = load_graphs(root, files, root / "cache")
    except SpecError as error:
        bad = {problem.file for problem in error.problems}
        good = [file for file in files if file.relative_to(root).as_posix() not in bad]
        # One that a good spec extends may be among the bad ones.
        graphs = [graph for file in good for graph in _graphs(root, file)]
    return {node.id: node for graph in graphs for node in graph.nodes}


def _graphs(root: Path, file: Path) -> list[SpecGraph]:
    from ingot.core.spec_cache import load_graphs

    try:
        return load_graphs(root, [file], root / "cache")
    except SpecError:
        return []


def receipt_of_target(project: Project, target: str) -> dict[str, Any]:
    """What ``latest`` gives, from an open project."""
    newest = project.index.latest.get(target)
    if newest is None:
        raise _not_built(project, target)
    from ingot.core.lookup import Lookup

    receipt = Lookup(project).newest(target)
    if receipt is None:
        raise _nowhere(target)
    return _presented(project, target, receipt)


def _nowhere(target: str) -> UsageError:
    what = f"the log points {target} at a result whose build is in no log"
    return UsageError("E-NOT-BUILT", what, hint="doit audit says what is wrong with the logs")


def _presented(project: Project, target: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt in the order of the documentation; ``built_as`` names the target that built it, if another one."""
    shown: dict[str, Any] = dict(receipt) | {"target": target, "built_at": receipt["timings"]["finished"]}
    shown["files"] = receipt["files"]
    if receipt["target"] != target:
        shown["built_as"] = receipt["target"]
    shown["present"] = project.store.presence(str(receipt["digest"]), shown["files"])[0] == "present"
    return {name: shown.pop(name) for name in _ORDER} | shown


def _not_built(project: Project, target: str) -> UsageError:
    nodes = declared(project)
    known = nodes.keys() | project.index.latest.keys()
    if target in nodes:
        return UsageError("E-NOT-BUILT", f"{target} was never built", hint=f"build it: doit {target}")
    variants = sorted(name for name in known if name.startswith((f"{target}@", f"{target}:")))
    if variants:
        return UsageError("E-TARGET", f"{target!r} names several targets", facts=variants, hint="name one of them")
    return unknown_target(target, known)


def unknown_target(name: str, known: Iterator[str] | set[str] | list[str]) -> UsageError:
    """The error for a name that means nothing, with the names nearest to it."""
    import difflib

    near = difflib.get_close_matches(name, sorted(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "doit list --all shows all targets"
    return UsageError("E-TARGET", f"there is no target {name!r}", hint=hint)


def entries_about(project: Project, name: str | None) -> list[Entry]:
    """The entries of a spec, a target or (None) all, oldest first."""
    if name is None:
        return list(project.registry.entries())
    from ingot.core.lookup import Lookup

    found = Lookup(project).about_all(name)
    if not found:
        known = declared(project)
        names = {form for node in known.values() for form in (node.spec, f"{node.spec}:{node.target}", node.id)}
        if name not in names:
            raise unknown_target(name, names | project.index.latest.keys())
    return found


def target_of(entry: Entry) -> str | None:
    """The target that an entry is about; None for one about the log itself."""
    from ingot.core.statement import type_of

    if type_of(entry.statement) == "origin":
        return None
    return str(entry.statement["subject"][0]["name"])


def described(entry: Entry, project: Project) -> dict[str, Any]:
    """An entry as ``doit history --json`` shows it."""
    from ingot.core.statement import decision_of, receipt_of

    place: dict[str, Any] = {"origin": entry.origin, "index": entry.index, "type": entry.type}
    if entry.type == "build":
        receipt = receipt_of(entry.statement)
        return place | {
            "target": receipt["target"],
            "digest": receipt["digest"],
            "time": entry.time,
            "kind": receipt["kind"],
            "key": receipt["key"],
            "wall_s": receipt["timings"]["wall_s"],
            "peak_anon_bytes": receipt["timings"].get("peak_anon_bytes"),
            "bytes": project.index.history.size_of(receipt["digest"]),
            "predicted": receipt.get("predicted"),
            "stored": receipt.get("stored", True),
            "shared_with": receipt.get("shared_with", []),
            "git": receipt["git"],
        }
    decision = decision_of(entry.statement)
    named = place | {"target": target_of(entry), "digest": decision["digest"], "time": entry.time}
    return named | {key: value for key, value in decision.items() if key not in named}
