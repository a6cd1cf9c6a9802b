"""A model of a disk that loses power: from one recorded run, the trees that a crash may legally leave.

After a plain kill everything done is there. After a power cut, what was not synced may be there or not:

- the content of a file since its last fsync: the old one, zeros, half of the new bytes, rubbish, or all of it;
- a mode since the last fsync of that file or folder: the old or the new one;
- a step on a folder's names (create, link, remove, rename) is safe once that folder was synced, a rename once the
  folder of the new name was: ext4, xfs, btrfs and APFS write a rename as one step. Of the rest any subset may be lost.

Nothing else is promised: syncing a file does not save its name, and steps on names are lost in any order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

#: What may be found of the bytes that were written since the last sync of a file.
VARIANTS = ("none", "zeros", "torn", "garbage", "all")


@dataclass(frozen=True)
class Event:
    """One step in terms of inodes. ``sets``: the names that it changes, each (folder, name, inode or None)."""

    name: str
    inode: int = 0
    kind: str = ""
    sets: tuple[tuple[int, str, int | None], ...] = ()
    data: bytes = b""
    offset: int = 0
    mode: int = 0
    site: str = ""
    what: Any = None


@dataclass
class Inode:
    """A file, folder or link: what it holds now, and what of it is safe."""

    kind: str
    data: bytes = b""
    mode: int = 0
    safe_data: bytes = b""
    safe_mode: int = 0

    def after(self, variant: str) -> bytes:
        """The content that a power cut leaves."""
        if self.data == self.safe_data or variant == "all":
            return self.data
        kept = _alike(self.data, self.safe_data)
        if variant == "none" or len(self.data) <= kept:
            return self.safe_data
        new = len(self.data) - kept
        lost = {"zeros": b"\0" * new, "torn": self.data[kept : kept + new // 2], "garbage": _rubbish(new)}[variant]
        return self.data[:kept] + lost


def _alike(one: bytes, other: bytes) -> int:
    """The length of what two byte strings have in common at their beginning."""
    if one.startswith(other):
        return len(other)
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _rubbish(size: int) -> bytes:
    return (hashlib.sha256(b"what lay there before").digest() * (size // 32 + 1))[:size]


@dataclass
class Tree:
    """Inodes and names; inode 1 is the root folder. ``pending``: the steps on names that are not safe yet."""

    inodes: dict[int, Inode] = field(default_factory=lambda: {1: Inode("folder", mode=0o755, safe_mode=0o755)})
    names: dict[tuple[int, str], int] = field(default_factory=dict)
    safe: dict[tuple[int, str], int] = field(default_factory=dict)
    pending: list[Event] = field(default_factory=list)

    def find(self, path: str) -> int:
        """The inode at a path."""
        inode = 1
        for part in path.split("/") if path else ():
            inode = self.names[inode, part]
        return inode

    def apply(self, event: Event, *, ignored: Collection[str] = ()) -> None:
        """Do one step; a sync asked for at one of the ``ignored`` sites does nothing."""
        inode = self.inodes.get(event.inode)
        if event.name in ("create", "mkdir", "symlink"):
            # A link's goal is written with its name.
            safe = event.data if event.kind == "link" else b""
            self.inodes[event.inode] = Inode(event.kind, event.data, event.mode, safe, event.mode)
        elif inode is not None and event.name == "write":
            inode.data = inode.data[: event.offset] + event.data + inode.data[event.offset + len(event.data) :]
        elif inode is not None and event.name == "truncate":
            inode.data = inode.data[: event.offset]
        elif inode is not None and event.name == "chmod":
            inode.mode = event.mode
        elif inode is not None and event.name == "sync" and event.site not in ignored:
            inode.safe_data, inode.safe_mode = inode.data, inode.mode
            if inode.kind == "folder":
                self._keep(event.inode)
        if event.sets:
            _set(self.names, event)
            self.pending.append(event)

    def _keep(self, folder: int) -> None:
        """The names in a folder are safe: those of the steps that ended there."""
        waiting: list[Event] = []
        for event in self.pending:
            if event.sets[-1][0] != folder:
                waiting.append(event)
                continue
            _set(self.safe, event)
            # What was done before to the same names is over: it cannot come back.
            over = {(place, name) for place, name, _inode in event.sets}
            left = [replace(it, sets=tuple(s for s in it.sets if s[:2] not in over)) for it in waiting]
            waiting = [it for it in left if it.sets]
        self.pending = waiting

    def dirty(self) -> list[int]:
        """The inodes whose content or mode is not safe."""
        return [number for number, it in self.inodes.items() if (it.data, it.mode) != (it.safe_data, it.safe_mode)]

    def settled(self) -> Tree:
        """This tree after a clean shutdown: everything is safe."""
        inodes = {number: replace(it, safe_data=it.data, safe_mode=it.mode) for number, it in self.inodes.items()}
        return Tree(inodes, dict(self.names), dict(self.names), [])

    def copy(self) -> Tree:
        """A tree of its own."""
        inodes = {number: replace(it) for number, it in self.inodes.items()}
        return Tree(inodes, dict(self.names), dict(self.safe), list(self.pending))


def _set(names: dict[tuple[int, str], int], event: Event) -> None:
    for folder, name, inode in event.sets:
        if inode is None:
            names.pop((folder, name), None)
        else:
            names[folder, name] = inode


#: A tree as it lies on the disk: by path (kind, content or goal, mode).
Image = dict[str, tuple[str, bytes, int]]


def _reachable(tree: Tree, names: dict[tuple[int, str], int]) -> Iterator[tuple[str, int, Inode]]:
    """Every path with its inode; a folder whose name was lost is lost with all that is in it."""
    children: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), number in names.items():
        children.setdefault(folder, []).append((name, number))
    todo = [("", 1)]
    while todo:
        path, folder = todo.pop()
        for name, number in children.get(folder, ()):
            full, inode = f"{path}/{name}" if path else name, tree.inodes[number]
            yield full, number, inode
            if inode.kind == "folder":
                todo.append((full, number))


def killed(tree: Tree) -> Image:
    """After a kill: everything that was done."""
    return {path: (inode.kind, inode.data, inode.mode) for path, _number, inode in _reachable(tree, tree.names)}


@dataclass(frozen=True)
class Loss:
    """What a power cut takes: steps on names (by their place among the pending), and of each inode's bytes and mode."""

    steps: frozenset[int] = frozenset()
    variant: str = "all"
    others: tuple[tuple[int, str], ...] = ()


def cut(tree: Tree, loss: Loss) -> Image:
    """After a power cut."""
    names = dict(tree.safe)
    for position, event in enumerate(tree.pending):
        if position not in loss.steps:
            _set(names, event)
    others, image = dict(loss.others), {}
    for path, number, inode in _reachable(tree, names):
        variant = others.get(number, loss.variant)
        mode = inode.safe_mode if variant == "none" else inode.mode
        image[path] = (inode.kind, inode.after(variant), mode)
    return image


def losses(tree: Tree, chance: random.Random, most: int) -> Iterator[Loss]:
    """Losses to try: no step with each variant, all steps, and ``most`` random subsets with mixed variants."""
    dirty, count = tree.dirty(), len(tree.pending)
    yield from (Loss(variant=variant) for variant in (VARIANTS if dirty else ("all",)))
    if not count:
        return
    yield Loss(frozenset(range(count)), chance.choice(VARIANTS))
    for _ in range(most):
        share = chance.choice((0.15, 0.5, 0.85))
        steps = frozenset(number for number in range(count) if chance.random() < share)
        yield Loss(steps, chance.choice(VARIANTS), tuple((number, chance.choice(VARIANTS)) for number in dirty))
