"""Which gates are judged at a target: its own, those of what it implies, and how its candidates stand beside what is
active.

Hidden targets are judged where they are wanted, at the report that implies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ingot.core.gate_sides import Now, Sides, subject_of
from ingot.core.gates import Gate, Verdict

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.project import Project


def implied_by(project: Project, node: Node) -> list[Node]:
    """The hidden targets that come back to a target in its roles, in the order of the roles."""
    names = dict.fromkeys(name for names in node.inputs.values() for name in names)
    found = (project.nodes[f"{node.spec}:{name}"] for name in names)
    return [it for it in found if it.hidden]


def gates_of(project: Project, node: Node) -> list[Gate]:
    """The gates of the spec that are judged at a target."""
    if node.hidden:
        return []
    names = {node.name, *(it.name for it in implied_by(project, node))}
    return [gate for gate in project.graphs[node.spec].gates if gate.target in names]


def candidates_of(project: Project, node: Node) -> list[Node]:
    """The hidden targets of a report that measure its candidates, the reference not among them."""
    candidates = {f"{node.spec}:{name}" for name in node.inputs.get("candidates", ())}
    if node.hidden or not candidates:
        return []
    return [it for it in implied_by(project, node) if subject_of(it) != it.id and subject_of(it) in candidates]


def judge_at(project: Project, node: Node, now: Now) -> Iterator[Verdict]:
    """Every verdict at a target, from the receipts that ``now`` gives; in the order of the spec, regressions last."""
    sides = Sides(project, project.standing)
    for gate in gates_of(project, node):
        measurer = project.nodes[f"{node.spec}:{gate.target}"]
        yield from sides.judge(gate, measurer, now(measurer.id), now)
    for measurer in candidates_of(project, node):
        yield from sides.regressions(measurer, now(measurer.id))
