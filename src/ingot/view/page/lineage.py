"""Where the candidates of a report come from: a graph of results by content, back to what was fetched or written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ingot.view.page.book import EVALUATIONS, Book, Entry


@dataclass(frozen=True)
class Node:
    """One result: the names under which it was used, its digest, and its entry where a log holds its build."""

    digest: str
    names: tuple[str, ...]
    entry: Entry | None

    @property
    def name(self) -> str:
        """Its names within the spec."""
        return ", ".join(name.partition(":")[2] for name in self.names)

    @property
    def kind(self) -> str:
        """The kind that built it."""
        return "unknown: its build is in no log" if self.entry is None else str(self.entry.receipt["kind"])


@dataclass(frozen=True)
class Edge:
    """``source`` was built into ``goal`` in a role; both by digest."""

    source: str
    goal: str
    role: str


@dataclass(frozen=True)
class Lineage:
    """The graph: nodes by digest with what they are built from before them, and the edges."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]

    def ancestors(self, digest: str) -> list[Node]:
        """Everything that a result was made of, itself included, in the order of the graph."""
        wanted, waiting = {digest}, [digest]
        while waiting:
            goal = waiting.pop()
            for edge in self.edges:
                if edge.goal == goal and edge.source not in wanted:
                    wanted.add(edge.source)
                    waiting.append(edge.source)
        return [node for name, node in self.nodes.items() if name in wanted]

    def layers(self) -> dict[str, int]:
        """The layer of each node: one more than the highest of what it is built from."""
        found: dict[str, int] = {}
        for digest in self.nodes:
            below = [found[edge.source] for edge in self.edges if edge.goal == digest and edge.source in found]
            found[digest] = max(below, default=-1) + 1
        return found


def trace(book: Book, report: Entry) -> Lineage:
    """Follow a report's inputs back; what it measured (its evaluations) is no part of the chain."""
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str, str], Edge] = {}

    def visit(target: str, digest: str, entry: Entry | None) -> None:
        known = nodes.get(digest)
        if known is not None:
            if target not in known.names:
                nodes[digest] = Node(digest, (*known.names, target), known.entry)
            return
        for role, name, source in _inputs(entry):
            visit(name, source, book.find(name, source))
            edges[source, digest, role] = Edge(source, digest, role)
        nodes[digest] = Node(digest, (target,), entry)

    visit(report.target, report.digest, report)
    return Lineage(nodes, tuple(edges.values()))


def _inputs(entry: Entry | None) -> Iterator[tuple[str, str, str]]:
    for role, target, digest in () if entry is None else entry.inputs():
        if role != EVALUATIONS:
            yield role, target, digest
