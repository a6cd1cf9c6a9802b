"""From a folder that a stage wrote to bytes that last: what is no artifact is refused, the rest is made read-only,
hashed, synced and read again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ingot.core import disk
from ingot.core.digest import FileRecord, fast_hash_file, record_files, walk_files
from ingot.errors import DiskFailed, StageFailed

#: Larger files stay in memory when they are read back: reading them from the medium would take seconds.
_FROM_MEDIUM_MAX = 1 << 30


def _refuse_empty_folders(root: Path) -> None:
    """An empty folder is in no file list, so it would silently be lost (E-OUTPUT-FILE)."""
    for path in root.rglob("*"):
        if path.is_dir() and not any(path.iterdir()):
            raise StageFailed("E-OUTPUT-FILE", f"the stage left an empty folder: {path.relative_to(root)}")


def sealed(root: Path, hashed: Sequence[FileRecord]) -> tuple[dict[str, os.stat_result], tuple[FileRecord, ...]]:
    """Make what was built read-only, and hash what has not been; StageFailed (E-OUTPUT-EMPTY) when there is nothing."""
    with disk.explained(root):
        statuses = _seal(root)
        records = record_files(root, hashed)
    if not records:
        raise StageFailed("E-OUTPUT-EMPTY", "the stage wrote no file")
    return statuses, records


def _seal(root: Path) -> dict[str, os.stat_result]:
    """Make all files and folders below ``root`` read-only and give the files' stats by name.

    The root itself stays writable until it is renamed. What cannot be an artifact is refused before anything changes.
    """
    try:
        folder = stat.S_ISDIR(os.lstat(root).st_mode)
    except FileNotFoundError:
        raise StageFailed("E-OUTPUT-EMPTY", "the stage removed its output folder") from None
    if not folder:
        # A link would lead the changes of modes below to files that are not ours.
        raise StageFailed("E-OUTPUT-FILE", "the stage put something else in the place of its output folder")
    os.chmod(root, 0o755)
    _refuse_empty_folders(root)
    names = list(walk_files(root))
    for name in names:
        if os.lstat(root / name).st_nlink != 1:
            raise StageFailed("E-OUTPUT-FILE", f"the stage left a hard link: {name}")
    for name in names:
        os.chmod(root / name, 0o444)
    for path in root.rglob("*"):
        if path.is_dir():
            os.chmod(path, 0o555)
    return {name: os.lstat(root / name) for name in names}


def sync_tree(root: Path, records: Iterable[FileRecord]) -> None:
    """fsync every file, then every folder from the leaves up, the root last."""
    folders = {root}
    for record in records:
        path = root / record.path
        disk.fsync_file(path)
        folders.update(parent for parent in path.parents if root in (parent, *parent.parents))
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        disk.fsync_dir(folder)


def read_back(root: Path, records: Iterable[FileRecord]) -> None:
    """Read what was hashed and synced again, from the medium where the system allows it (E-CHANGED when it differs).

    A bit that changed in memory between hash and write, or a program that still writes, is found before anything is
    published.
    """
    for record in records:
        path = root / record.path
        with disk.explained(path):
            if record.size <= _FROM_MEDIUM_MAX:
                disk.forget_cached(path)
            same = os.lstat(path).st_size == record.size and fast_hash_file(path) == record.xxh3_128
        if not same:
            raise DiskFailed(
                "E-CHANGED",
                f"a file that was just written has other content when it is read again: {path}",
                hint="run doit again; else memory or disk are failing, or the stage left a program running that writes",
            )
