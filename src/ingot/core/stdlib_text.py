"""Python's own documentation as text: real prose and code that every machine has.

``extract("docstrings")`` gives the docstrings of the standard library's modules, classes and functions,
``extract("topics")`` the language topics that ``help()`` shows. Both are JSON lines
``{"module", "name", "signature", "doc"}``, read from source files with ``ast``: nothing is imported or run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ingot.errors import RefusedInput

#: Raised when the same Python would give other text.
_REVISION = 1

#: Folders that are not the library itself: tests, tools, other people's packages, data.
_SKIPPED = frozenset(
    (
        "__pycache__",
        "_bundled",
        "dist-packages",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    )
)

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def fingerprint() -> str:
    """A cheap stand-in for the text: it changes when Python or one of the files read here does.

    The SHA-256 of (relative path, size, mtime_ns) of the files and the Python version, in hex.
    """
    sha = hashlib.sha256(f"{_REVISION} {platform.python_version()}\n".encode())
    root = _root()
    for name in [*_files(root, ""), "pydoc_data/topics.py"]:
        try:
            status = (root / name).stat()
        except FileNotFoundError:
            continue
        sha.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def extract(which: str) -> bytes:
    """The text as JSON lines, in order of module path and position: the same bytes for the same Python sources.

    RefusedInput (E-STDLIB) when this Python comes without the source files.
    """
    root = _root()
    lines = _topics(root) if which == "topics" else _docstrings(root)
    text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode()
    if not text:
        raise RefusedInput(
            "E-STDLIB",
            f"this Python has no {which} to read",
            facts=[f"looked in {root}"],
            hint="use a Python that comes with the sources of its standard library",
        )
    return text


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files(root: Path, prefix: str) -> Iterator[str]:
    """Relative posix paths of the library's source files, sorted."""
    with os.scandir(root / prefix) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            if entry.name.isidentifier() and entry.name not in _SKIPPED:
                yield from _files(root, f"{path}/")
        elif re.fullmatch(r"[A-Za-z_]\w*\.py", entry.name):
            yield path


def _docstrings(root: Path) -> Iterator[dict[str, str]]:
    for name in _files(root, ""):
        module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        try:
            tree = _parse(root / name)
        except SyntaxError:
            continue  # templates and samples that are no Python of this version
        yield from _line(module, "", "", tree)
        for qualified, node in _definitions(tree, ""):
            yield from _line(module, qualified, _signature(node), node)


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own strings
        return ast.parse(path.read_bytes())


def _definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Classes and functions with their qualified names, also below ``if`` and ``try``; not inside functions."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _Definition):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt | ast.excepthandler):
            yield from _definitions(node, prefix)


def _signature(node: _Definition) -> str:
    """``(a, b=1) -> int`` of a function, ``(Base)`` of a class; empty for a class without bases."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"({bases})" if bases else ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def _line(module: str, name: str, signature: str, node: ast.Module | _Definition) -> Iterator[dict[str, str]]:
    doc = ast.get_docstring(node, clean=True)
    if doc and doc.strip():
        yield {"module": module, "name": name, "signature": signature, "doc": doc.strip()}


def _topics(root: Path) -> Iterator[dict[str, str]]:
    try:
        tree = _parse(root / "pydoc_data" / "topics.py")
    except FileNotFoundError:
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, doc in sorted(ast.literal_eval(node.value).items()):
                yield {"module": "pydoc_data.topics", "name": name, "signature": "", "doc": doc.strip()}
