"""The machine under a piece of code: every change that it makes on the disk below one folder passes here.

``Machine.running()`` stands in for the functions of ``os`` that change a tree or make it durable, wherever they are
called from (this package, ``pathlib``, ``shutil``). What it cannot follow (a file opened for writing by
Python's own ``open``) it refuses, and a recording is compared with the real tree at its end, so nothing goes unseen.
A subclass says what happens before and after each step: stop there, or write it down.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ingot

_PACKAGE = str(Path(ingot.__file__).parent) + os.sep
_DISK = os.path.join(_PACKAGE, "core", "disk.py")
#: Functions of ``disk`` that only carry out a sync which their caller has decided on.
_CARRIERS = frozenset({"_sync", "_sync_path", "fsync_file", "fsync_dir"})

#: What an open adds to a tree: "open" alone changes nothing.
CHANGES = frozenset({"create", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "symlink", "chmod", "truncate"})


def is_lock(path: str) -> bool:
    """Whether a file is there to be locked: what it says of its holder is for people and decides nothing."""
    return path.endswith(".lock") and not path.endswith("ingot.lock")


class Killed(BaseException):
    """SIGKILL: no handler of an ordinary error runs."""


@dataclass
class Step:
    """One call: what it does, the path (relative to the machine's folder), and what belongs to it."""

    name: str
    path: str
    to: str = ""
    fd: int = -1
    data: bytes = b""
    size: int = 0
    appends: bool = False
    site: str = ""


class Machine:
    """Watches one folder; this base class lets everything pass."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._open: dict[int, str] = {}

    def before(self, step: Step) -> None:
        """Called before a step is done; may raise."""

    def after(self, step: Step) -> None:
        """Called when it is done; ``fd`` of an open and the bytes written are known."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stand in for the operating system."""
        real = {name: getattr(os, name) for name in (*_PATHS, *_DESCRIPTORS, "open", "rename", "replace", "symlink")}
        ours: dict[str, Any] = {
            "open": lambda *a, **k: self._opened(real["open"], *a, **k),
            "rename": lambda *a, **k: self._renamed(real["rename"], *a, **k),
            "replace": lambda *a, **k: self._renamed(real["replace"], *a, **k),
            "symlink": lambda *a, **k: self._linked(real["symlink"], *a, **k),
        }
        ours |= {name: self._on_path(step, real[name]) for name, step in _PATHS.items()}
        ours |= {name: self._on_descriptor(step, real[name]) for name, step in _DESCRIPTORS.items()}
        refusing = self._refusing(io.open)
        python = mock.patch.object(io, "open", refusing), mock.patch.object(builtins, "open", refusing)
        with mock.patch.multiple(os, **ours), python[0], python[1]:
            yield

    # --- the functions of os ---------------------------------------------------------------------------------

    def _opened(self, real: Callable[..., int], path: Any, flags: int, mode: int = 0o777, **where: Any) -> int:
        full = self._inside(path, where.get("dir_fd"))
        if full is None:
            return real(path, flags, mode, **where)
        there = os.path.lexists(os.path.join(self.root, full))
        assert not (there and flags & os.O_TRUNC), f"a file is overwritten in place: {full}"
        step = Step("create" if flags & os.O_CREAT and not there else "open", full)
        step.appends = bool(flags & os.O_APPEND)
        self.before(step)
        step.fd = real(path, flags, mode, **where)
        self._open[step.fd] = full
        self.after(step)
        return step.fd

    def _renamed(self, real: Callable[..., None], source: Any, target: Any) -> None:
        old, new = self._inside(source), self._inside(target)
        assert (old is None) == (new is None), "a rename into or out of the machine"
        self._do(None if old is None or new is None else Step("rename", old, to=new), real, source, target)

    def _linked(self, real: Callable[..., None], goal: Any, path: Any) -> None:
        full = self._inside(path)
        self._do(None if full is None else Step("symlink", full, to=os.fspath(goal)), real, goal, path)

    def _on_path(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *arguments: Any, **where: Any) -> None:
            full = self._inside(path, where.get("dir_fd"))
            self._do(None if full is None else Step(name, full), real, path, *arguments, **where)

        return call

    def _on_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *arguments: Any) -> Any:
            if fd not in self._open or (name in ("write", "truncate") and is_lock(self._open[fd])):
                return real(fd, *arguments)
            step = Step(name, self._open[fd], fd=fd)
            if name == "write":
                step.data = bytes(arguments[0])
            elif name == "truncate":
                step.size = int(arguments[0])
            elif name == "sync":
                step.site = sync_site(fd)
            result = self._do(step, real, fd, *arguments)
            if name == "close":
                del self._open[fd]
            return result

        return call

    def _do(self, step: Step | None, real: Callable[..., Any], *arguments: Any, **where: Any) -> Any:
        if step is None:
            return real(*arguments, **where)
        self.before(step)
        result = real(*arguments, **where)
        if step.name == "write":
            step.data = step.data[:result]
        self.after(step)
        return result

    def _refusing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            outside = isinstance(file, int) or self._inside(file) is None
            assert outside or not set(mode) & set("wax+"), f"a write that cannot be followed: {file}"
            return real(file, mode, *arguments, **named)

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path relative to the machine's folder; None for one outside."""
        if isinstance(path, int):
            return self._open.get(path)
        name = os.fsdecode(path)
        if dir_fd is not None:
            if dir_fd not in self._open:
                return None
            return os.path.join(self._open[dir_fd], name)
        full = os.path.normpath(os.path.join(os.getcwd(), name))
        return full[len(self.root) + 1 :] if full.startswith(self.root + os.sep) else None


#: Functions that take a path first, and the step that they are.
_PATHS = {"mkdir": "mkdir", "unlink": "unlink", "remove": "unlink", "rmdir": "rmdir", "chmod": "chmod"}
_DESCRIPTORS = {
    "write": "write",
    "fsync": "sync",
    "fdatasync": "sync",
    "ftruncate": "truncate",
    "fchmod": "chmod",
    "close": "close",
}


def sync_site(descriptor: int) -> str:
    """Who asks for the sync that is under way: the line that calls ``disk``, what it calls, and what is synced."""
    inner, frame = "", sys._getframe(1)
    while frame is not None:
        code, name = frame.f_code, frame.f_code.co_filename
        if name == _DISK:
            if not inner and code.co_name not in _CARRIERS:
                # A file's content and its name are synced by two lines of one function.
                inner = f": {code.co_name}, {'name' if os.path.isdir(f'/dev/fd/{descriptor}') else 'content'}"
        elif name.startswith(_PACKAGE):
            return f"{name.removeprefix(_PACKAGE)}:{frame.f_lineno} {code.co_name}{inner}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


class Stopping(Machine):
    """Raises ``fault()`` at the ``stop_at``-th change; a write that is stopped is torn."""

    def __init__(self, root: Path, stop_at: int, fault: Callable[[], BaseException] = Killed) -> None:
        super().__init__(root)
        self.count, self.stop_at, self.fault = 0, stop_at, fault
        self.steps: list[Step] = []

    def before(self, step: Step) -> None:
        if step.name not in CHANGES:
            return
        self.count += 1
        self.steps.append(step)
        if self.count == self.stop_at:
            if step.name == "write":
                _REAL_WRITE(step.fd, step.data[: len(step.data) // 2])
            raise self.fault()


_REAL_WRITE = os.write
