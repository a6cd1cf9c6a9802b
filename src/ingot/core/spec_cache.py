"""Resolved graphs cached by content: an unchanged project loads neither ruamel nor pydantic nor a kind.

``cache/specs/<hash>.json``: the hash is of the name and bytes of the spec file and of the code reading it. Inside are
the SHA-256 of every file that it extends, so a changed parent is a miss; the whole is sealed, so damage is one too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ingot.core.files import read_regular
from ingot.core.graph import SpecGraph, from_json, to_json
from ingot.core.seal import user_seal
from ingot.errors import DiskFailed, Problem, SpecError

_FORMAT = 10
_MAX_BYTES = 1 << 20
_PACKAGE = Path(__file__).resolve().parent.parent


def spec_files(project_root: Path) -> list[Path]:
    """The specs of a project, in folders below ``specs/`` too, in the order of their paths."""
    return sorted((project_root / "specs").rglob("*.yaml"))


def load_graphs(project_root: Path, files: Iterable[Path], cache_dir: Path) -> list[SpecGraph]:
    """The graph of each spec file, in order; SpecError with the problems of all of them."""
    code = _code()
    graphs: list[SpecGraph] = []
    problems: list[Problem] = []
    for file in files:
        try:
            graphs.append(_load(project_root, file, cache_dir / "specs", code))
        except SpecError as error:
            problems += error.problems
    problems += _twins(graphs)
    if problems:
        raise SpecError(problems)
    return graphs


def _twins(graphs: list[SpecGraph]) -> list[Problem]:
    seen: dict[str, str] = {}
    problems = []
    for graph in graphs:
        first = seen.setdefault(graph.name, graph.file)
        if first != graph.file:
            what = f"{first} is also named {graph.name!r}"
            problems.append(Problem(graph.file, 1, 1, "name", "E-SPEC-DUPNAME", what, "give one of them another name"))
    return problems


def _code() -> bytes:
    """A fingerprint of the code that reads specs: Python, and name, size and mtime of the core and of all kinds."""
    parts = [f"ingot-graph-{_FORMAT}", sys.version]
    for folder in ("core", "stages"):
        with os.scandir(_PACKAGE / folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    parts.append(f"{folder}/{entry.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join([*parts[:2], *sorted(parts[2:])]).encode()


def _load(root: Path, file: Path, folder: Path, code: bytes) -> SpecGraph:
    name = os.path.relpath(os.path.realpath(file), os.path.realpath(root)).replace(os.sep, "/")
    digest = _hash(root, name)
    if digest is not None:
        cached = _read(root, folder / f"{_entry(name, digest, code)}.json")
        if cached is not None:
            return cached
    return _resolve(root, file, folder, code)


def _entry(name: str, digest: str, code: bytes) -> str:
    return hashlib.sha256(f"{name}\n{digest}\n".encode() + code).hexdigest()


def _hash(root: Path, name: str) -> str | None:
    try:
        return hashlib.sha256(read_regular(root / name, _MAX_BYTES + 1)).hexdigest()
    except OSError:
        return None  # load_spec says what is wrong with the file


def _read(root: Path, path: Path) -> SpecGraph | None:
    """The graph of an entry; None when there is none, it is damaged, or a file that the spec extends changed."""
    try:
        head, _, body = (user_seal().unwrap(f"specs/{path.name}", path.read_bytes()) or b"").partition(b"\n")
        facts: dict[str, Any] = json.loads(head)
        if facts["format"] != _FORMAT:
            return None
        if any(_hash(root, name) != digest for name, digest in facts["extends"]):
            return None
        return from_json(json.loads(body))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _resolve(root: Path, file: Path, folder: Path, code: bytes) -> SpecGraph:
    from ingot.core.disk import make_dirs, write_file_atomic
    from ingot.core.spec import load_spec

    spec = load_spec(file, root)
    graph = spec.graph()
    body = json.dumps(to_json(graph), separators=(",", ":"), ensure_ascii=False).encode()
    head = json.dumps({"format": _FORMAT, "extends": spec.files[1:]}).encode()
    entry = f"{_entry(*spec.files[0], code)}.json"
    # It only spares time: where nothing can be written, what only reads goes on, and a build meets the same soon.
    with suppress(DiskFailed):
        make_dirs(folder)
        write_file_atomic(folder / entry, user_seal().wrap(f"specs/{entry}", head + b"\n" + body), durable=False)
    return graph
