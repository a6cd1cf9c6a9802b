"""``cache/evicted/`` and ``cache/trash/``: what was taken out of the store on purpose, and is not lost."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ingot.core import disk, staging
from ingot.core.latest import Latest


class Evicted(Latest):
    """The marks of a store's evicted objects, and how an object gets its place and loses it."""

    root: Path

    def evict(self, digest: str) -> None:
        """Take the bytes of an object away for good, so that one knows that it was done on purpose.

        In this order: the mark is durable, the object has lost its name, its bytes are gone. Killed in between, either
        the object is whole, or it is evicted and what is left lies in ``trash/``, which the next eviction empties.
        """
        disk.make_dirs_durable(self.root / "evicted")
        disk.write_file_atomic(self.root / "evicted" / digest, b"")
        self.discard(digest)

    def discard(self, digest: str) -> None:
        """Take the bytes of an object away that nothing names."""
        trash, path = self.root / "trash", self.object_path(digest)
        # Not durable: what lies here may be lost, and the bytes go only once the object's name is gone for good.
        disk.make_dirs(trash)
        with disk.explained(path):
            os.chmod(path, 0o755)  # renaming a folder needs write permission on it: its '..' changes
        disk.rename_durable(path, trash / f"{digest}-{secrets.token_hex(4)}")
        self.empty_trash()

    def empty_trash(self) -> None:
        """Delete what evictions took out of the store, and what one that was killed left."""
        trash = self.root / "trash"
        for name in sorted(os.listdir(trash)) if trash.is_dir() else ():
            staging.remove_tree(trash / name)

    def returned(self) -> list[str]:
        """Digests that are marked as evicted and whose objects are there: whoever moved one out or in was killed."""
        folder = self.root / "evicted"
        with disk.explained(folder):
            marks = sorted(os.listdir(folder)) if folder.is_dir() else []
        return [name for name in marks if os.path.lexists(self.object_path(name))]

    def settle(self, digest: str) -> None:
        """Take the mark of an object away that is there, once it is read-only. Called while nothing is evicted."""
        if os.path.lexists(self.object_path(digest)):
            self._settle(self.object_path(digest), moved=True)
            (self.root / "evicted" / digest).unlink(missing_ok=True)

    def is_evicted(self, digest: str) -> bool:
        """Whether the bytes of a result were taken away on purpose; not so where they were lost with the cache."""
        return os.path.lexists(self.root / "evicted" / digest)

    def _settle(self, target: Path, *, moved: bool) -> None:
        """Make an object's own folder read-only: only now, because a folder that is renamed must be writable."""
        with disk.explained(target):
            os.chmod(target, 0o555)
        disk.fsync_dir(target)
        if not moved:
            # Whoever moved it in may have been killed before its name was durable.
            disk.fsync_dir(target.parent)
