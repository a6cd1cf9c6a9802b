"""The store under ``cache/``: objects by digest, results by key, staging, quarantine. Disposable.

Publishing, in order: build in ``staging/`` on the same file system; refuse odd files; hash; make read-only;
fsync every file, then every folder; rename to ``objects/<2>/<digest>``; fsync the parents. The object is durable
then, but it *exists* only once the registry has an entry that names it: readers go from entry to digest to file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ingot.core import disk, locks, staging
from ingot.core.digest import FileRecord, fast_hash_file, tree_digest, walk_files
from ingot.core.evicted import Evicted
from ingot.core.filed import Filed
from ingot.core.redact import environment_secrets, scrub_file
from ingot.core.seal import Seal
from ingot.core.sealing import read_back, sealed, sync_tree
from ingot.core.staging import Staging
from ingot.core.statcache import StatCache
from ingot.errors import DiskFailed, RefusedInput, StoreDamaged

#: How long another process may keep a lock of the store, which is held for milliseconds.
WAIT_S = 60.0

Presence = Literal["present", "missing", "damaged"]

#: Says of a file by its name whether whoever asked reads and compares it himself: then its size is looked at alone.
Later = Callable[[str], bool]


def none_later(_name: str) -> bool:
    """Every file is compared now."""
    return False


@dataclass(frozen=True)
class Damage:
    """One file of an object that is not what the registry says: its path and what is wrong with it."""

    path: str
    detail: str


class Store(Evicted, Filed):
    """The folder ``cache/`` of a project. Opening it creates nothing; derived files count under ``seal`` alone."""

    def __init__(self, root: Path, seal: Seal | None = None) -> None:
        self.root = root
        self.seal = seal or Seal()
        self.stats = StatCache(root / "stat.json", self.seal)

    # --- reading ---------------------------------------------------------------------------------------------

    def presence(
        self, digest: str, files: Iterable[Mapping[str, Any]], *, reread: bool = False, later: Later = none_later
    ) -> tuple[Presence, tuple[Damage, ...]]:
        """Whether an object is there and whole, by the registry's file list.

        A file whose stat is known is taken as read, unless ``reread``; any other is read again (xxh3-128), unless the
        caller will (``later``). Damage is
        also whatever is not listed, is no regular file or cannot be read from the device. DiskFailed when one may not
        look.
        """
        damage = []
        path = self.object_path(digest)
        listed = {str(record["path"]): record for record in files}
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return "damaged", (Damage("the object", "is not a folder"),)
            extra = set(walk_files(path, empty_folders=True)) - set(listed)
            damage += [Damage(name, "is not in the registry's list") for name in sorted(extra)]
        except FileNotFoundError:
            return "missing", ()
        except RefusedInput as error:
            damage.append(Damage("the object", f"holds what no artifact can hold ({error.what})"))
        except OSError as error:
            # Not being able to look is no reason to say that nothing is there.
            raise disk.failure(error, path) from error
        compared = (
            self._look(digest, record) if later(name) else self._compare(digest, record, reread=reread)
            for name, record in listed.items()
        )
        found = [item for item in compared if item is not None] + damage
        return ("damaged" if found else "present"), tuple(found)

    def _look(self, digest: str, record: Mapping[str, Any]) -> Damage | None:
        """Whether a file is there, and as large as it must be."""
        name = str(record["path"])
        path = self.object_path(digest) / name
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return Damage(name, "is missing")
        except OSError as error:
            raise disk.failure(error, path) from error
        return _odd(name, status, record)

    def _compare(self, digest: str, record: Mapping[str, Any], *, reread: bool) -> Damage | None:
        name = str(record["path"])
        path = self.object_path(digest) / name
        try:
            status = os.lstat(path)
            odd = _odd(name, status, record)
            if odd is not None:
                return odd
            if not reread and self.stats.get(self._label(digest, name), status) == record["xxh3_128"]:
                return None
            same = fast_hash_file(path) == record["xxh3_128"]
        except (FileNotFoundError, NotADirectoryError):
            return Damage(name, "is missing")
        except OSError as error:
            if error.errno == errno.EIO:
                return Damage(name, "cannot be read: the device reports an error")
            raise disk.failure(error, path) from error
        if same:
            self.stats.put(self._label(digest, name), status, str(record["xxh3_128"]), settled=True)
            return None
        # Where the stat did not tell, it shall not be asked again.
        self.doubt(digest, name)
        return Damage(name, "has other content")

    def doubt(self, digest: str, name: str) -> None:
        """Have a file of an object read again the next time, whatever its stat says."""
        self.stats.drop(self._label(digest, name))

    def _label(self, digest: str, name: str) -> str:
        return f"objects/{digest}/{name}"

    def objects(self) -> Iterator[str]:
        """Every digest that has a folder. Never used to decide what exists; for audit and sizes."""
        base = self.root / "objects"
        if base.is_dir():
            for prefix in sorted(os.listdir(base)):
                # File managers leave files of their own.
                if (base / prefix).is_dir():
                    yield from sorted(os.listdir(base / prefix))

    # --- publishing ------------------------------------------------------------------------------------------

    def staging(self) -> AbstractContextManager[Staging]:
        """A fresh staging folder, locked as long as any process of the build lives; dropped at the end."""
        self._keep_from_git()
        # Before they are needed: gc makes room on a disk that has no block left for a folder.
        for name in ("evicted", "trash"):
            disk.make_dirs(self.root / name)
        self.sweep_staging()
        return staging.opened(self.root / "staging")

    def _keep_from_git(self) -> None:
        """``cache/.gitignore``: ``git add -A`` must not take models of many gigabytes."""
        path = self.root / ".gitignore"
        if not os.path.lexists(path):
            disk.make_dirs(self.root)
            # Durable, because nobody would notice that a power cut has emptied it.
            disk.write_file_atomic(path, b"*\n")

    def sweep_staging(self) -> int:
        """Drop the staging folders of dead builds (their lock is free); returns how many.

        Nobody was left to take what a library had printed of secrets out of their logs: that is done too.
        """
        swept = staging.sweep(self.root / "staging")
        if swept:
            with disk.explained(self.root / "logs"):
                for path in sorted((self.root / "logs").glob("*/*.log")):
                    scrub_file(path, environment_secrets())
        return swept

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Keep other threads and processes away from what ``name`` stands for, for a moment; not re-entrant.

        Busy (E-BUSY) when another keeps it for longer than any moment: it was stopped, or hangs.
        """
        folder = self.root / "locks"
        disk.make_dirs(folder)
        with locks.held(folder / f"{name}.lock", f"has been holding the {name} of the store", WAIT_S):
            yield

    def publish(self, built: Staging, hashed: Sequence[FileRecord] = ()) -> tuple[str, tuple[FileRecord, ...]]:
        """Make what lies in ``built.out`` a durable object; returns its digest and its files.

        ``hashed`` are records of files that were hashed while they were written: they are read back, and not hashed
        once more before.
        An object of that digest that is already there is read again and kept; a damaged one goes to quarantine
        and makes room. Raises StageFailed (E-OUTPUT-EMPTY, E-OUTPUT-FILE), RefusedInput (names, links), DiskFailed
        (E-CHANGED: a file is not what was hashed a moment before).
        """
        statuses, records = sealed(built.out, hashed)
        sync_tree(built.out, records)
        read_back(built.out, records)
        digest = tree_digest(records)
        target = self.object_path(digest)
        disk.make_dirs_durable(target.parent)
        listing = [record.to_dict() for record in records]
        presence, _damage = self.presence(digest, listing, reread=True)
        if presence == "damaged":
            self.quarantine(digest, listing)
        moved = presence != "present" and self._move_in(built.out, target)
        self._settle(target, moved=moved)
        # From now on its absence would be a loss again.
        (self.root / "evicted" / digest).unlink(missing_ok=True)
        if moved:
            for record in records:
                # The stat is from before the file was read: what was written to it later is seen as a change.
                self.stats.put(self._label(digest, record.path), statuses[record.path], record.xxh3_128, settled=True)
        return digest, records

    def measure(self, built: Staging, hashed: Sequence[FileRecord] = ()) -> tuple[str, tuple[FileRecord, ...]]:
        """The digest and the files of what lies in ``built.out``, made read-only where it is; nothing is published.

        ``hashed`` as in ``publish``; whoever uses the files compares them. Raises as ``publish`` for what is none.
        """
        _statuses, records = sealed(built.out, hashed)
        with disk.explained(built.out):
            os.chmod(built.out, 0o555)
        return tree_digest(records), records

    def _move_in(self, source: Path, target: Path) -> bool:
        """Rename an object to its place; False when another process has published the same digest meanwhile."""
        try:
            disk.rename_durable(source, target)
        except DiskFailed as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def quarantine(self, digest: str, files: Collection[Mapping[str, Any]]) -> Path | None:
        """Move a damaged object aside, keeping its bytes; returns where it lies now.

        None when it is no longer there or whole again: another process has dealt with it.
        """
        folder = self.root / "quarantine"
        disk.make_dirs_durable(folder)
        target = folder / f"{digest}-{secrets.token_hex(4)}"
        path = self.object_path(digest)
        with self.exclusive("quarantine"):
            if self.presence(digest, files)[0] != "damaged":
                return None
            with disk.explained(path):
                if not path.is_symlink():
                    os.chmod(path, 0o755)  # renaming a folder needs write permission on it: its '..' changes
            disk.rename_durable(path, target)
        return target

    # --- what people ask for, and what builds need ------------------------------------------------------------

    def forget(self, target: str) -> None:
        """Ask for a new build of a target (``spec:name``) although its result is at hand; a power cut may undo it."""
        disk.make_dirs(self.root / "forgotten")
        disk.write_file_atomic(self.root / "forgotten" / target, b"", durable=False)

    def remember(self, target: str) -> None:
        """Take ``forget`` back, once the target was built."""
        (self.root / "forgotten" / target).unlink(missing_ok=True)

    def is_forgotten(self, target: str) -> bool:
        """Whether a new build was asked for."""
        return os.path.lexists(self.root / "forgotten" / target)

    def require(
        self, digest: str, files: Collection[Mapping[str, Any]], *, reread: bool = True, later: Later = none_later
    ) -> Path:
        """The folder of an object that is present and whole, read now; a damaged one is quarantined (StoreDamaged).

        ``reread=False`` trusts the stats of what was read before: whether it is still what it was then. ``later`` as
        in ``presence``.
        """
        presence, damage = self.presence(digest, files, reread=reread, later=later)
        if presence == "present":
            return self.object_path(digest)
        if presence == "missing":
            what = f"the object {digest[:12]} is not in the store"
            raise StoreDamaged("E-OBJECT-MISSING", what, hint="run doit again to build it anew")
        kept = self.quarantine(digest, files)
        where = f"its bytes were moved to {os.path.relpath(kept, self.root.parent)}; " if kept else "it is whole now; "
        raise StoreDamaged(
            "E-OBJECT-DAMAGED",
            f"the object {digest[:12]} is damaged",
            facts=[f"{item.path} {item.detail}" for item in damage],
            hint=f"{where}run doit again to build it anew",
        )


def _odd(name: str, status: os.stat_result, record: Mapping[str, Any]) -> Damage | None:
    """What a file's kind and size alone show."""
    if not stat.S_ISREG(status.st_mode):
        return Damage(name, "is no file")
    if status.st_size != record["size"]:
        return Damage(name, f"has {status.st_size} bytes, not {record['size']}")
    return None
