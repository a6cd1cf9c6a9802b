"""Where the spec writes a field of a target: file and line, read again only when somebody asks for a line.

The cached graph knows the line of each target and no more, so the file (and what it extends) is read once more with
the reader that keeps places; that loads ruamel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from ingot.core.changes import Path
from ingot.core.digest import canonical_json
from ingot.core.extends import load_chain
from ingot.core.graph import Node
from ingot.core.problems import Problems
from ingot.core.yaml_reader import Document
from ingot.errors import SpecError


@dataclass(frozen=True)
class Spot:
    """A line of a spec file; that of what is around a field which is not there (``written`` is False)."""

    file: str
    line: int
    written: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SpecPlaces:
    """The places of all specs of one project, each file read at most once. ``files`` maps specs to their files."""

    def __init__(self, root: FilePath, files: Mapping[str, str]) -> None:
        self._root = root
        self._files = files
        self._documents: dict[str, Document | None] = {}

    def param(self, node: Node, path: Path) -> Spot | None:
        """Where a parameter of a target is written; by a matrix, the line of the value that this instance took.

        Of a hidden target it is the line of the target that implies it: it has none of its own.
        """
        document = self._document(node.spec)
        if document is None or not path:
            return None
        if node.hidden:
            return replace(self._spot(document, ("targets", node.target)), written=True)
        axis = _axis(document, node, str(path[0]))
        return self._spot(document, ("targets", node.target, *(path if axis is None else (*axis, *path[1:]))))

    def role(self, node: Node, role: str) -> Spot | None:
        """Where a role of a target is wired."""
        return self.param(node, ("from", role))

    def seed(self, node: Node) -> Spot | None:
        """Where the seed of a target's spec is written."""
        document = self._document(node.spec)
        return None if document is None else self._spot(document, ("seed",))

    def _document(self, spec: str) -> Document | None:
        if spec not in self._documents:
            try:
                self._documents[spec] = load_chain(self._root / self._files[spec], self._root).document
            except (SpecError, KeyError):
                self._documents[spec] = None
        return self._documents[spec]

    def _spot(self, document: Document, path: Path) -> Spot:
        problems = Problems(document, [])
        place = problems.place(path, key=True)
        return Spot(place.file, place.line, problems.holds(path))


def _axis(document: Document, node: Node, param: str) -> Path | None:
    """The path below the target of the value that a matrix gives this instance; None where no matrix sets ``param``."""
    target: Any = document.value["targets"].get(node.target, {})
    matrix = target.get("matrix") if isinstance(target, dict) else None
    if not isinstance(matrix, dict) or param not in matrix:
        return None
    own = node.name.partition("@")[2].split("+")[-len(matrix) :]
    label = own[list(matrix).index(param)]
    for index, item in enumerate(matrix[param]):
        if isinstance(item, dict):
            if label in item:
                return ("matrix", param, index, label)
        elif (item if isinstance(item, str) else canonical_json(item).decode()) == label:
            return ("matrix", param, index)
    return ("matrix", param)
