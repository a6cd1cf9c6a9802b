"""``extends:``: a spec file merged over the one it names, by the rules of a JSON merge patch (RFC 7396).

Mappings are merged by key, lists and scalars replaced, ``null`` deletes. ``name`` is not inherited. Every value keeps
the place of the file that wrote it, so that messages point there and source paths stay relative to it.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingot.core import yaml_reader
from ingot.core.files import read_regular
from ingot.core.yaml_reader import MAX_BYTES, Document, Place
from ingot.errors import Problem, SpecError

MAX_CHAIN = 16


@dataclass
class Chain:
    """A merged document, the problems found on the way, and every file that was read: (name, SHA-256), child first."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)


def relative_name(path: Path, root: Path) -> str:
    """The project-relative posix path of a file; SpecError (E-PATH) when it lies outside, links followed."""
    name = os.path.relpath(os.path.realpath(path), os.path.realpath(root)).replace(os.sep, "/")
    if name == ".." or name.startswith("../") or os.path.isabs(name):
        raise SpecError([Problem(str(path), 1, 1, "", "E-PATH", "a spec lies inside its project", None)])
    return name


def load_chain(path: Path, root: Path) -> Chain:
    """The spec file at ``path`` merged over everything it extends. SpecError where no document is left to check."""
    name = relative_name(path, root)
    return _load(name, root, [], Place(name, 1, 1))


def _load(name: str, root: Path, above: list[str], wanted: Place) -> Chain:
    data = _read(name, root, wanted, chained=bool(above))
    document, problems = yaml_reader.read_yaml(data, name)
    chain = Chain(document, problems, [(name, hashlib.sha256(data).hexdigest())])
    if "extends" not in document.value:
        return chain
    try:
        parent = _load(_parent(document, name, [*above, name], root), root, [*above, name], document.places["extends",])
    except SpecError as error:
        raise SpecError([*problems, *error.problems]) from None
    return Chain(_merge(parent.document, document), problems + parent.problems, chain.files + parent.files)


def _read(name: str, root: Path, wanted: Place, *, chained: bool) -> bytes:
    try:
        return read_regular(root / name, MAX_BYTES + 1)
    except OSError as error:
        field_path = "extends" if chained else ""
        what = f"the file {name} cannot be read: {(error.strerror or str(error)).lower()}"
        raise SpecError(
            [Problem(wanted.file, wanted.line, wanted.column, field_path, "E-SPEC-FILE", what, None)]
        ) from error


def _parent(document: Document, name: str, chain: list[str], root: Path) -> str:
    """The project-relative name of the file that ``extends:`` names."""
    place = document.places["extends",]
    value = document.value["extends"]

    def refuse(code: str, what: str) -> SpecError:
        return SpecError([Problem(place.file, place.line, place.column, "extends", code, what, None)])

    if not isinstance(value, str) or not value:
        raise refuse("E-SPEC-EXTENDS", "`extends` names one spec file, relative to this one")
    joined = clean_path(posixpath.dirname(name), value)
    if joined is None:
        raise refuse("E-PATH", "a path in a spec is relative and stays inside the project")
    try:
        parent = relative_name(root / joined, root)
    except SpecError:
        raise refuse("E-PATH", "the file lies outside the project") from None
    if parent in chain:
        raise refuse("E-SPEC-EXTENDS", f"a cycle: {' -> '.join([*chain[chain.index(parent) :], parent])}")
    if len(chain) >= MAX_CHAIN:
        raise refuse("E-SPEC-EXTENDS", f"a chain of more than {MAX_CHAIN} files")
    return parent


def clean_path(folder: str, path: str) -> str | None:
    """``path`` as written in a file of ``folder``, relative to the project; None when it is absolute or leaves it."""
    absolute = path.startswith(("/", "~", "\\")) or path[1:2] == ":"
    parts = path.split("/")
    after_glob = [part for i, part in enumerate(parts) if part == ".." and any(set(p) & set("*?[") for p in parts[:i])]
    if not path or absolute or "\\" in path or not path.isprintable() or after_glob:
        return None
    joined = posixpath.normpath(posixpath.join(folder, path))
    return None if joined in (".", "..") or joined.startswith("../") else joined


def _merge(parent: Document, child: Document) -> Document:
    merger = _Merger(parent, child)
    value = merger.both(
        {key: item for key, item in parent.value.items() if key != "name"},
        {key: item for key, item in child.value.items() if key != "extends"},
        (),
    )
    return replace(merger.result, value=value, muted=frozenset(merger.muted))


class _Merger:
    """Merges values and takes each place from the file whose value is kept."""

    def __init__(self, parent: Document, child: Document) -> None:
        self._parent, self._child = parent, child
        self.result = Document({}, {(): child.places[()]}, {}, {})
        self.muted: set[yaml_reader.Path] = set()

    def both(self, old: dict[str, Any], new: dict[str, Any], path: yaml_reader.Path) -> dict[str, Any]:
        self._take(self._child, path)
        merged: dict[str, Any] = {}
        for key in {**old, **new}:
            here = (*path, key)
            if key not in new:
                merged[key] = self._copy(self._parent, old[key], here)
            elif isinstance(new[key], dict):
                below = old.get(key)
                merged[key] = self.both(below if isinstance(below, dict) else {}, new[key], here)
            elif new[key] is not None:
                merged[key] = self._copy(self._child, new[key], here)
        return merged

    def _copy(self, document: Document, value: object, path: yaml_reader.Path) -> object:
        self._take(document, path)
        if isinstance(value, dict):
            return {key: self._copy(document, item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._copy(document, item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _take(self, document: Document, path: yaml_reader.Path) -> None:
        self.result.places[path] = document.places[path]
        if path in document.keys:
            self.result.keys[path] = document.keys[path]
        if path in document.raw:
            self.result.raw[path] = document.raw[path]
        if path in document.muted:
            self.muted.add(path)
