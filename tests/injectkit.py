"""An operating system that fails: the N-th call of some kinds on files of one folder, or all from it on.

The calls are those that Python's own code and ingot's make in this process: functions of ``os``, and reads and writes
of files that were opened by ``open`` (which ``pathlib`` and ``os.fdopen`` use). Real files, real processes; only the
answer of one call is another.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

#: Functions of ``os`` by what says where they act: a path, a descriptor, or the second of two paths.
_BY_PATH = ("mkdir", "rmdir", "unlink", "remove", "chmod", "stat", "lstat", "readlink", "scandir", "listdir", "utime")
_BY_DESCRIPTOR = ("write", "pwrite", "fsync", "ftruncate", "fchmod", "fstat", "read", "pread")
_BY_SECOND = ("rename", "replace", "symlink", "link")

_ADDING = frozenset({"mkdir", "create", "write", "pwrite", "fsync", "rename", "symlink"})
_OPENING = frozenset({"open", "create", "scandir", "listdir"})
_NAMING = frozenset({"mkdir", "rmdir", "unlink", "chmod", "fchmod", "stat", "lstat", "rename", "symlink"})

#: Which calls can answer with an error.
CALLS: dict[int, frozenset[str]] = {
    errno.ENOSPC: _ADDING,
    errno.EDQUOT: _ADDING,
    errno.EMFILE: _OPENING,
    errno.EACCES: _NAMING | _OPENING,
    errno.EIO: _NAMING | _OPENING | _ADDING | {"read", "pread", "ftruncate", "fstat", "readlink"},
}

READS = frozenset({"read", "pread"})


@dataclass
class Machine:
    """Counts calls of the kinds ``calls`` below ``folder`` and fails the ``at``-th, all from it on if ``lasting``."""

    folder: Path
    number: int
    at: int
    calls: frozenset[str]
    lasting: bool = False
    #: Calls count only where this says so of the path. doit itself looks for dodo.py, and says what it likes.
    where: Callable[[str], bool] = lambda path: not path.endswith("/dodo.py")
    count: int = 0
    #: The call that failed first: its kind and its path.
    failed: tuple[str, str] | None = None
    trace: list[tuple[str, str]] = field(default_factory=list)

    def meet(self, call: str, path: str, *, named: bool) -> None:
        """One call; raises the error when it is its turn. Only calls that take a path name it in their error."""
        if call not in self.calls or not path.startswith(f"{self.folder}/") or not self.where(path):
            return
        self.count += 1
        self.trace.append((call, path))
        if self.count == self.at or (self.lasting and self.count > self.at):
            self.failed = self.failed or (call, path)
            text = os.strerror(self.number)
            raise OSError(self.number, text, path) if named else OSError(self.number, text)

    @contextmanager
    def running(self) -> Iterator[Machine]:
        """This machine in the place of the real one."""
        saved = [(os, name, getattr(os, name)) for name in ("open", *_BY_PATH, *_BY_DESCRIPTOR, *_BY_SECOND)]
        saved += [(io, "open", io.open), (builtins, "open", builtins.open)]
        try:
            for module, name, original in saved:
                setattr(module, name, self._instead(name if module is os else "file", original))
            yield self
        finally:
            for module, name, original in saved:
                setattr(module, name, original)

    def _instead(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        call = {"remove": "unlink", "replace": "rename", "link": "symlink"}.get(name, name)

        def failing(*arguments: Any, **named: Any) -> Any:
            if name == "file":
                return self._file(original, *arguments, **named)
            if name == "open":
                flags = arguments[1]
                made = "create" if flags & os.O_CREAT else "open"
                self.meet(made, _path(arguments[0], named.get("dir_fd")), named=True)
            elif name in _BY_DESCRIPTOR:
                self.meet(call, _path(arguments[0]), named=False)
            else:
                place = arguments[1] if name in _BY_SECOND else arguments[0] if arguments else "."
                self.meet(call, _path(place, named.get("dir_fd")), named=not isinstance(place, int))
            return original(*arguments, **named)

        return failing

    def _file(self, original: Callable[..., Any], file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        path = _path(file)
        if not path.startswith(f"{self.folder}/"):
            return original(file, mode, *rest, **named)
        if not isinstance(file, int):
            self.meet("create" if set(mode) & set("wxa") else "open", path, named=True)
        return _File(self, path, original(file, mode, *rest, **named))


class _File:
    """An open file whose reads and writes may fail."""

    def __init__(self, machine: Machine, path: str, file: Any) -> None:
        self._machine, self._path, self._inner = machine, path, file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        call = "read" if name.startswith("read") else "write" if name == "write" else ""
        if not call or name == "readable":
            return found

        def failing(*arguments: Any) -> Any:
            self._machine.meet(call, self._path, named=False)
            return found(*arguments)

        return failing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_what: object) -> None:
        self._inner.close()

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line


def _path(place: Any, folder: int | None = None) -> str:
    """Where a call acts, as an absolute path."""
    if isinstance(place, int):
        try:
            return _readlink(f"/proc/self/fd/{place}")
        except OSError:
            return ""
    text = os.fsdecode(place)
    return text if text.startswith("/") else f"{_path(folder) if folder is not None else os.getcwd()}/{text}"


_readlink = os.readlink
