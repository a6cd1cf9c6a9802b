"""Staging: the private folder of each build, locked as long as any process of the build lives.

``<name>/`` holds what a build writes, ``<name>.lock`` beside it says that its build lives. Whoever gets the lock of
another's folder knows that its build is dead and may drop it. The lock file is there before the folder and goes after
it, so a folder without one is a dead build's too: neither name is synced, and a power cut may take either.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ingot.core import disk

_LOOK_S = 1.0


@dataclass(frozen=True)
class Staging:
    """A build's private folder: ``out`` becomes the artifact; every process of the build inherits ``lock_fd``."""

    root: Path
    lock_fd: int
    #: Where the artifact lies: a build of several has one of these for each.
    out_name: str = "out"

    @property
    def out(self) -> Path:
        """Where the stage writes."""
        return self.root / self.out_name

    def part(self, number: int) -> Staging:
        """The same folder with the artifact at ``number`` of those that are built in one pass; the first is at 0."""
        return replace(self, out_name=f"out-{number}") if number else self

    @property
    def scratch(self) -> Path:
        """Room for temporary files, dropped afterwards."""
        return self.root / "scratch"

    @property
    def sources(self) -> Path:
        """Where snapshots of the sources lie."""
        return self.root / "sources"

    @property
    def streamed(self) -> Path:
        """Where the stages of inputs that flow have their temporary files."""
        return self.root / "streamed"

    def bytes_beside(self) -> int:
        """Bytes of what lies here and will be dropped: scratch files and snapshots of sources."""
        return sum(bytes_below(folder) for folder in (self.scratch, self.sources, self.streamed))

    def source_bytes(self, sources: Iterable[tuple[str, Mapping[str, Any], str]]) -> int:
        """Bytes of the project files in the snapshot of a node's sources, counted as ``SourceReader.size`` does."""
        return sum(
            bytes_below(self.sources / str(index))
            for index, (_pointer, source, _base) in enumerate(sources)
            if not source.get("python_stdlib")
        )


class Watch:
    """The most bytes seen beside the artifact while a stage runs: looked at every second, and at the end.

    A temporary file that lives for less than a second may be missed. Checkpoints lie in a folder ``also``, and count.
    """

    def __init__(self, staging: Staging, also: Path | None = None) -> None:
        self._staging = staging
        self._also = also
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = 0

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._measure()

    def _measure(self) -> None:
        also = 0 if self._also is None else bytes_below(self._also)
        self.most = max(self.most, self._staging.bytes_beside() + also)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()
        self._measure()


@contextmanager
def opened(base: Path) -> Iterator[Staging]:
    """A fresh folder below ``base``, dropped at the end; the folders of dead builds are dropped first."""
    disk.make_dirs(base)
    sweep(base)
    name, lock = _claim(base)
    staging = Staging(base / name, lock)
    try:
        with disk.explained(staging.root):
            for folder in (staging.root, staging.out, staging.scratch):
                folder.mkdir()
        yield staging
    finally:
        # What cannot be removed keeps its lock file, so a later sweep tries again; a build that is done must not
        # fail, and one that failed must not lose its reason, because of rubbish.
        try:
            if remove_tree(staging.root):
                with suppress(OSError):
                    (base / f"{name}.lock").unlink(missing_ok=True)
        finally:
            os.close(lock)


def sweep(base: Path) -> int:
    """Drop the folders of dead builds (their lock is free, or gone); returns how many. DiskFailed."""
    with disk.explained(base):
        try:
            names = set(os.listdir(base))
        except FileNotFoundError:
            return 0
        locks = {name for name in names if name.endswith(".lock")}
        # Listed before its lock is looked at: a build that begins meanwhile has its lock first.
        swept = sum(_drop(base / name) for name in sorted(names - locks) if not os.path.lexists(base / f"{name}.lock"))
        return swept + sum(_sweep_locked(base / name) for name in sorted(locks))


def _drop(path: Path) -> bool:
    """Remove a folder that no build holds; what people or file managers put here is left alone."""
    return not path.is_symlink() and path.is_dir() and remove_tree(path)


def _sweep_locked(path: Path) -> bool:
    """Drop the folder of a lock file, and the file, when the lock is free."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _lock(lock) or not remove_tree(path.with_suffix("")):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(lock)


def _claim(base: Path) -> tuple[str, int]:
    """A new name and the descriptor that holds its lock."""
    while True:
        name = secrets.token_hex(8)
        path = base / f"{name}.lock"
        with disk.explained(path):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # Before it is locked, another process may have taken the file for a dead build's: then it is held by that
        # one, or has lost its name, and another file is taken.
        try:
            if _lock(descriptor) and _has_name(descriptor, path):
                return name, descriptor
        except OSError as error:
            os.close(descriptor)
            raise disk.failure(error, path) from error
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the lock without waiting; False when another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def bytes_below(path: Path) -> int:
    """Bytes of all files below a folder that others write to; what vanishes or may not be read is left out."""
    total, todo = 0, [path]
    while todo:
        with suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(Path(entry.path))
                    elif stat.S_ISREG(status.st_mode):
                        total += status.st_size
    return total


def remove_tree(path: Path) -> bool:
    """Remove a folder, read-only and unreadable parts included; whether it is gone."""
    todo = [path]
    try:
        while todo:
            folder = todo.pop()
            os.chmod(folder, 0o700)
            with os.scandir(folder) as entries:
                todo += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        shutil.rmtree(path)
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError:
        return False
    return True
