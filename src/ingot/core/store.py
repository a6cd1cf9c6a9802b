"""The store under ``cache/``: objects by digest, results by key, staging, quarantine. Disposable.

Publishing, in order: build in ``staging/`` on the same file system; refuse odd files; hash; make read-only;
fsync every file, then every folder; rename to ``objects/<2>/<digest>``; fsync the parents. The object is durable
then, but it *exists* only once the registry has an entry that names it: readers go from entry to digest to file.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ingot.core import disk
from ingot.core.digest import FileRecord, fast_hash_file, record_files, tree_digest, walk_files
from ingot.core.statcache import StatCache
from ingot.errors import Busy, DiskFailed, StageFailed, StoreDamaged

Presence = Literal["present", "missing", "damaged"]


@dataclass(frozen=True)
class Damage:
    """One file of an object that is not what the registry says: its path and what is wrong with it."""

    path: str
    detail: str


@dataclass(frozen=True)
class Staging:
    """A build's private folder: ``out`` becomes the artifact; every process of the build inherits ``lock_fd``."""

    root: Path
    lock_fd: int

    @property
    def out(self) -> Path:
        """Where the stage writes."""
        return self.root / "out"

    @property
    def scratch(self) -> Path:
        """Room for temporary files, dropped afterwards."""
        return self.root / "scratch"

    @property
    def sources(self) -> Path:
        """Where snapshots of the sources lie."""
        return self.root / "sources"


class Store:
    """The folder ``cache/`` of a project. Opening it creates nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stats = StatCache(root / "stat.json")

    def object_path(self, digest: str) -> Path:
        """Where an object lies, or would lie."""
        return self.root / "objects" / digest[:2] / digest

    # --- reading ---------------------------------------------------------------------------------------------

    def presence(self, digest: str, files: Iterable[Mapping[str, Any]]) -> tuple[Presence, tuple[Damage, ...]]:
        """Whether an object is there and whole, by the registry's file list.

        A file whose stat is known is taken as read; any other is read again (xxh3-128). Extra files are damage.
        """
        path = self.object_path(digest)
        try:
            names = set(walk_files(path))
        except FileNotFoundError:
            return "missing", ()
        damage = [self._compare(digest, record) for record in files]
        listed = {str(record["path"]) for record in files}
        damage += [Damage(name, "is not in the registry's list") for name in sorted(names - listed)]
        found = tuple(item for item in damage if item is not None)
        return ("damaged" if found else "present"), found

    def _compare(self, digest: str, record: Mapping[str, Any]) -> Damage | None:
        name = str(record["path"])
        path = self.object_path(digest) / name
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return Damage(name, "is missing")
        if status.st_size != record["size"]:
            return Damage(name, f"has {status.st_size} bytes, not {record['size']}")
        label = self._label(digest, name)
        if self.stats.get(label, status) == record["xxh3_128"]:
            return None
        if fast_hash_file(path) != record["xxh3_128"]:
            return Damage(name, "has other content")
        self.stats.put(label, status, str(record["xxh3_128"]), settled=True)
        return None

    def reread(self, digest: str) -> str:
        """The digest of the bytes that really lie in an object's folder: reads and SHA-256s everything."""
        return tree_digest(record_files(self.object_path(digest)))

    def _label(self, digest: str, name: str) -> str:
        return f"objects/{digest}/{name}"

    def objects(self) -> Iterator[str]:
        """Every digest that has a folder. Never used to decide what exists; for audit and sizes."""
        base = self.root / "objects"
        if base.is_dir():
            for prefix in sorted(os.listdir(base)):
                yield from sorted(os.listdir(base / prefix))

    # --- publishing ------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A fresh staging folder, locked as long as any process of the build lives; dropped at the end."""
        base = self.root / "staging"
        disk.make_dirs_durable(base)
        self.sweep_staging()
        name = secrets.token_hex(8)
        lock = os.open(base / f"{name}.lock", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _lock(lock)
            staging = Staging(base / name, lock)
            for folder in (staging.root, staging.out, staging.scratch):
                folder.mkdir()
            yield staging
        finally:
            _remove_tree(base / name)
            os.close(lock)
            (base / f"{name}.lock").unlink(missing_ok=True)

    def sweep_staging(self) -> int:
        """Drop the staging folders of dead builds (their lock is free); returns how many."""
        base, swept = self.root / "staging", 0
        for lock_path in sorted(base.glob("*.lock")):
            try:
                lock = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                _lock(lock)
            except Busy:
                continue
            else:
                _remove_tree(lock_path.with_suffix(""))
                lock_path.unlink(missing_ok=True)
                swept += 1
            finally:
                os.close(lock)
        return swept

    def publish(self, staging: Staging) -> tuple[str, tuple[FileRecord, ...]]:
        """Make what lies in ``staging.out`` a durable object; returns its digest and its files.

        An object of that digest that is already there is verified and kept; a damaged one goes to quarantine
        and makes room. Raises StageFailed (E-OUTPUT-EMPTY), RefusedInput (names, links), DiskFailed.
        """
        _refuse_empty_folders(staging.out)
        _seal(staging.out)
        records = record_files(staging.out)
        if not records:
            raise StageFailed("E-OUTPUT-EMPTY", "the stage wrote no file")
        _sync_tree(staging.out, records)
        digest = tree_digest(records)
        target = self.object_path(digest)
        disk.make_dirs_durable(target.parent)
        listing = [record.to_dict() for record in records]
        presence, _damage = self.presence(digest, listing)
        if presence == "damaged":
            self.quarantine(digest)
        if presence != "present":
            self._move_in(staging.out, target)
        for record in records:
            path = target / record.path
            self.stats.put(self._label(digest, record.path), os.lstat(path), record.xxh3_128, settled=True)
        return digest, records

    def _move_in(self, source: Path, target: Path) -> None:
        try:
            disk.rename_durable(source, target)
        except DiskFailed as error:
            cause = error.__cause__
            # Another process published the same digest in between: theirs is as good as ours.
            if not (isinstance(cause, OSError) and cause.errno in (errno.ENOTEMPTY, errno.EEXIST)):
                raise
        os.chmod(target, 0o555)

    def quarantine(self, digest: str) -> Path:
        """Move a damaged object aside, keeping its bytes; returns where it lies now."""
        folder = self.root / "quarantine"
        disk.make_dirs_durable(folder)
        target = folder / f"{digest}-{secrets.token_hex(4)}"
        path = self.object_path(digest)
        os.chmod(path, 0o755)  # renaming a folder needs write permission on it: its '..' changes
        disk.rename_durable(path, target)
        return target

    # --- results: what is known of each key (derived from the registry) --------------------------------------

    def read_result(self, key: str) -> list[dict[str, Any]]:
        """The receipts seen for a key, oldest first; empty when none is known."""
        try:
            data = json.loads((self.root / "results" / f"{key}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return list(data["builds"]) if isinstance(data, dict) and data.get("format") == 1 else []

    def add_result(self, key: str, receipt: Mapping[str, Any]) -> None:
        """File one receipt under its key; the same entry (origin, index) is filed once."""
        builds = self.read_result(key)
        place = (receipt["origin"], receipt["index"])
        if place not in [(build["origin"], build["index"]) for build in builds]:
            builds.append(dict(receipt))
            builds.sort(
                key=lambda build: (str(build["timings"]["finished"]), str(build["origin"]), int(build["index"]))
            )
            text = json.dumps({"format": 1, "key": key, "builds": builds}, separators=(",", ":"), sort_keys=True)
            disk.make_dirs_durable(self.root / "results")
            disk.write_file_atomic(self.root / "results" / f"{key}.json", text.encode(), durable=False)

    # --- for people ------------------------------------------------------------------------------------------

    def link_latest(self, spec: str, name: str, digest: str) -> Path:
        """Point ``cache/latest/<spec>/<target>`` at an object; returns the link."""
        folder = self.root / "latest" / spec
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / name
        goal = os.path.relpath(self.object_path(digest), folder)
        if not link.is_symlink() or os.readlink(link) != goal:
            disk.replace_link(link, goal)
        return link

    def has_latest(self, spec: str, name: str, digest: str) -> bool:
        """Whether the link of a target points at this object."""
        folder = self.root / "latest" / spec
        try:
            return os.readlink(folder / name) == os.path.relpath(self.object_path(digest), folder)
        except OSError:
            return False

    def unlink_latest(self, spec: str, name: str) -> bool:
        """Remove the link of a target; whether there was one."""
        link = self.root / "latest" / spec / name
        if not link.is_symlink():
            return False
        link.unlink()
        return True

    def forget(self, target: str) -> None:
        """Ask for a new build of a target (``spec:name``) although its result is at hand."""
        disk.make_dirs_durable(self.root / "forgotten")
        disk.write_file_atomic(self.root / "forgotten" / target, b"")

    def remember(self, target: str) -> None:
        """Take ``forget`` back, once the target was built."""
        (self.root / "forgotten" / target).unlink(missing_ok=True)

    def is_forgotten(self, target: str) -> bool:
        """Whether a new build was asked for."""
        return os.path.lexists(self.root / "forgotten" / target)

    def require(self, digest: str, files: Iterable[Mapping[str, Any]]) -> Path:
        """The folder of an object that is present and whole; a damaged one is quarantined (StoreDamaged)."""
        presence, damage = self.presence(digest, files)
        if presence == "present":
            return self.object_path(digest)
        if presence == "missing":
            raise StoreDamaged("E-OBJECT-MISSING", f"the object {digest[:12]} is not in the store")
        kept = self.quarantine(digest)
        raise StoreDamaged(
            "E-OBJECT-DAMAGED",
            f"the object {digest[:12]} is damaged",
            facts=[f"{item.path} {item.detail}" for item in damage],
            hint=f"its bytes were moved to {os.path.relpath(kept, self.root.parent)}; run doit again to build it anew",
        )


def _lock(descriptor: int) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Busy("E-BUSY", "the staging folder is in use") from error


def _refuse_empty_folders(root: Path) -> None:
    """An empty folder is in no file list, so it would silently be lost (E-OUTPUT-FILE)."""
    for path in root.rglob("*"):
        if path.is_dir() and not any(path.iterdir()):
            raise StageFailed("E-OUTPUT-FILE", f"the stage left an empty folder: {path.relative_to(root)}")


def _seal(root: Path) -> None:
    """Make all files and folders below ``root`` read-only; the root itself stays writable until it is renamed."""
    for name in walk_files(root):
        path = root / name
        if os.lstat(path).st_nlink != 1:
            raise StageFailed("E-OUTPUT-FILE", f"the stage left a hard link: {name}")
        os.chmod(path, 0o444)
    for path in root.rglob("*"):
        if path.is_dir():
            os.chmod(path, 0o555)


def _sync_tree(root: Path, records: Iterable[FileRecord]) -> None:
    """fsync every file, then every folder from the leaves up, the root last."""
    folders = {root}
    for record in records:
        path = root / record.path
        disk.fsync_file(path)
        folders.update(parent for parent in path.parents if root in (parent, *parent.parents))
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        disk.fsync_dir(folder)


def _remove_tree(path: Path) -> None:
    """Remove a staging folder, read-only parts included; errors are raised."""
    if not path.is_dir():
        return
    for folder, _names, _files in os.walk(path):
        os.chmod(folder, 0o755)
    shutil.rmtree(path)
