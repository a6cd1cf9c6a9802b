"""Record what a piece of code does to a disk as events of ``crashmodel``, and lay its images out on a real one."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from crashmodel import Event, Image, Inode, Tree
from machine import Machine, Step, is_lock


class Recorder(Machine):
    """Writes down every step of what runs, as events over the tree that it started with."""

    def __init__(self, root: Path, tree: Tree | None = None) -> None:
        super().__init__(root)
        self.start = scanned(root) if tree is None else tree
        self.tree = self.start.copy()
        self.events: list[Event] = []
        self._fds: dict[int, tuple[int, bool]] = {}
        self._at: dict[int, int] = {}
        self._next = max(self.tree.inodes) + 1

    def mark(self, name: str, what: Any) -> None:
        """Note something that is no step of the disk, such as what was acknowledged."""
        self.events.append(Event(name, what=what))

    def after(self, step: Step) -> None:
        if step.name in ("open", "create"):
            event = self._made(step, "file") if step.name == "create" else None
            self._fds[step.fd] = (self.tree.find(step.path) if event is None else event.inode, step.appends)
            self._at[step.fd] = 0
        elif step.name == "close":
            del self._fds[step.fd]
            return
        else:
            event = self._event(step)
        if event is not None:
            self.tree.apply(event)
            self.events.append(event)

    def _event(self, step: Step) -> Event:
        if step.fd >= 0:
            return self._on_descriptor_event(step)
        if step.name in ("mkdir", "symlink"):
            return self._made(step, "folder" if step.name == "mkdir" else "link")
        inode = self.tree.find(step.path)
        if step.name == "chmod":
            return Event("chmod", inode, mode=self._mode(step.path))
        gone = (*self._name(step.path), None)
        if step.name == "rename":
            return Event("rename", inode, sets=(gone, (*self._name(step.to), inode)))
        return Event(step.name, inode, sets=(gone,))

    def _on_descriptor_event(self, step: Step) -> Event:
        inode, appends = self._fds[step.fd]
        if step.name == "write":
            offset = len(self.tree.inodes[inode].data) if appends else self._at[step.fd]
            self._at[step.fd] = offset + len(step.data)
            return Event("write", inode, data=step.data, offset=offset)
        if step.name == "truncate":
            return Event("truncate", inode, offset=step.size)
        if step.name == "chmod":
            return Event("chmod", inode, mode=stat.S_IMODE(os.fstat(step.fd).st_mode))
        return Event("sync", inode, site=step.site, what=step.path)

    def _made(self, step: Step, kind: str) -> Event:
        self._next += 1
        place = (*self._name(step.path), self._next)
        return Event(step.name, self._next, kind, (place,), step.to.encode(), mode=self._mode(step.path))

    def _name(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self.tree.find(folder), name

    def _mode(self, path: str) -> int:
        return stat.S_IMODE(os.lstat(os.path.join(self.root, path)).st_mode)

    def trees(self, ignored: Collection[str] = ()) -> Iterator[tuple[int, Tree]]:
        """The tree after each number of events, from none to all; it goes on changing, so copy what you keep."""
        tree = self.start.copy()
        yield 0, tree
        for number, event in enumerate(self.events, 1):
            tree.apply(event, ignored=ignored)
            yield number, tree

    def said(self, upto: int) -> list[Event]:
        """What was marked among the first events."""
        return [event for event in self.events[:upto] if event.what is not None and event.name != "sync"]


def scanned(root: Path) -> Tree:
    """The tree as it lies below a folder, all of it safe."""
    tree, todo, number = Tree(), [(root, 1)], 1
    while todo:
        folder, parent = todo.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            number += 1
            path = Path(entry.path)
            kind, data, mode = _looked_at(path)
            tree.inodes[number] = Inode(kind, data, mode, data, mode)
            tree.names[parent, entry.name] = number
            if kind == "folder":
                todo.append((path, number))
    tree.safe = dict(tree.names)
    return tree


def _looked_at(path: Path) -> tuple[str, bytes, int]:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return "link", os.readlink(path).encode(), stat.S_IMODE(mode)
    if stat.S_ISDIR(mode):
        return "folder", b"", stat.S_IMODE(mode)
    return "file", b"" if is_lock(path.name) else path.read_bytes(), stat.S_IMODE(mode)


def laid_out(image: Image, root: Path) -> None:
    """Make an image real below an empty folder."""
    modes = []
    for path, (kind, data, mode) in image.items():
        full = f"{root}/{path}"
        if kind == "folder":
            os.mkdir(full)
            modes.append((full, mode))
        elif kind == "link":
            os.symlink(data.decode(), full)
        else:
            descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, data)
            os.fchmod(descriptor, mode)
            os.close(descriptor)
    for full, mode in reversed(modes):
        os.chmod(full, mode)
