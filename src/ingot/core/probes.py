"""The measurements that a report would make of the intermediates of its chains: the same kinds, settings and keys.

They are what the report implies when the intermediates are among its candidates, named ``REPORT.INTERMEDIATE``, so a
report that lists one later finds its measurement made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ingot.core.graph import Node, expand
from ingot.core.lineage import MAIN
from ingot.core.names import stands_for, suggestion
from ingot.core.stage import load_kind
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.project import Project

_CANDIDATES, _REFERENCE = "candidates", "reference"


def report_of(project: Project, name: str) -> Node:
    """The report that ``SPEC`` or ``SPEC:REPORT`` names; UsageError (E-TARGET) for none, or for several."""
    spec, _, target = name.partition(":")
    found = [node for node in project.nodes.values() if node.kind == "report" and node.spec == spec]
    chosen = [node for node in found if target in ("", node.name, node.target)]
    if len(chosen) == 1:
        return chosen[0]
    listed = [node.id for node in chosen or found]
    if chosen:
        raise UsageError("E-TARGET", f"{name!r} has several reports", facts=listed, hint="name one of them")
    if spec not in project.graphs:
        raise UsageError("E-TARGET", f"there is no spec {spec!r}", hint=suggestion(spec, project.graphs))
    hint = (
        f"its reports: {', '.join(listed)}" if listed else "bisection asks what a report measures: add one to the spec"
    )
    raise UsageError("E-TARGET", f"{name!r} is no report", hint=hint)


def ends(project: Project, report: Node, target: str | None) -> list[str]:
    """The names of the targets whose chains are searched: one, or each candidate that no other is made of."""
    names = {node.name: node for node in project.nodes.values() if node.spec == report.spec}
    candidates = report.inputs.get(_CANDIDATES, ())
    if target is not None:
        name = target.removeprefix(f"{report.spec}:")
        if name in names and _can_be_measured(report, names[name]):
            return [name]
        what = "cannot be a candidate of a report" if name in names else "is no target"
        raise UsageError("E-TARGET", f"{target!r} {what}", hint=suggestion(name, candidates))
    inner = {name for each in candidates for name in chain(project, report, each)[:-1]}
    return [name for name in dict.fromkeys(candidates) if name not in inner]


def chain(project: Project, report: Node, name: str) -> tuple[str, ...]:
    """The names of what a target is made of step by step, from the reference where it is an ancestor, itself last.

    Only what a report can measure: an adapter alone is no model. What the report itself measures is one, whatever its
    kind may bring (``fetch`` brings anything).
    """
    reference, found, following = report.inputs.get(_REFERENCE, ()), [], name
    measured = (*reference, *report.inputs.get(_CANDIDATES, ()))
    while True:
        node = project.nodes[f"{report.spec}:{following}"]
        if following in measured or _can_be_measured(report, node):
            found.append(following)
        (model,) = node.inputs.get(MAIN, ())[:1] or ("",)
        if not model or following in reference:
            return tuple(reversed(found))
        following = model


def _can_be_measured(report: Node, node: Node) -> bool:
    return node.produces in load_kind(report.kind).inputs[_CANDIDATES].accepts


def add(project: Project, report: Node, names: Iterable[str]) -> None:
    """Let the graph have what the report would measure of these targets; nothing else of the project changes."""
    from ingot.core.spec import load_spec

    graph = project.graphs[report.spec]
    spec = load_spec(project.root / graph.file, project.root)
    target = spec.targets[report.target]
    wires = tuple(
        replace(wire, names=tuple(dict.fromkeys((*wire.names, *names)))) if wire.role == _CANDIDATES else wire
        for wire in target.wires
    )
    targets = {**spec.targets, report.target: replace(target, wires=wires)}
    found = [node for node in expand(replace(spec, targets=targets)) if node.hidden and node.target == report.target]
    new = [node for node in found if node.id not in project.nodes]
    at = graph.nodes.index(report)
    # What they measure comes before them: the report itself may stand before a target that it has not among its own.
    project.graphs[report.spec] = replace(graph, nodes=_ordered((*graph.nodes[:at], *new, *graph.nodes[at:])))
    others = {name: node for name, node in project.nodes.items() if node.spec != report.spec}
    project.nodes = {**others, **{node.id: node for node in project.graphs[report.spec].nodes}}


def _ordered(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Inputs before consumers."""
    by_name, done = {node.name: node for node in nodes}, dict[str, Node]()

    def visit(node: Node) -> None:
        if node.name not in done:
            for names in node.inputs.values():
                for name in names:
                    visit(by_name[name])
            done[node.name] = node

    for node in nodes:
        visit(node)
    return tuple(done.values())


def probe(project: Project, report: Node, name: str, metric: str) -> Node | None:
    """The measurement of a target that has a metric, ``METRIC`` or ``TASK.METRIC``; None where the report has none."""
    task = metric.rpartition(".")[0]
    return project.nodes.get(".".join(filter(None, (f"{report.id}.{name}", task))))


def require_metric(project: Project, report: Node, names: Sequence[str], metric: str) -> None:
    """UsageError (E-METRIC) with the nearest names when nothing that the report asks of the last target measures it."""
    start = f"{report.id}.{names[-1]}"
    known: dict[str, None] = {}
    for node in project.nodes.values():
        if node.id == start or (node.id.startswith(f"{start}.") and node.target == report.target and node.hidden):
            task = node.id[len(start) + 1 :]
            known.update({f"{task}.{each}" if task else each: None for each in node.measured})
    if not any(stands_for(each, metric) for each in known):
        import difflib

        near = difflib.get_close_matches(metric, list(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"measured are {', '.join(known)}"
        raise UsageError("E-METRIC", f"nothing in {report.id} measures {metric!r}", hint=hint)
