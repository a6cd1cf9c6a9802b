"""What is known of files whose stat has not changed since they were last read.

An entry is keyed by (inode, size, mtime_ns, ctime_ns); it spares a second read of the same bytes and is
never proof: ``audit`` reads everything, and so does whoever builds from a file. Losing the cache costs time only.

What it cannot see: bytes that change under an unchanged stat, as on a failing disk. Nothing but reading finds those.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ingot.core import disk
from ingot.core.seal import Seal

#: A file changed this recently may change again within one tick of its time stamp, so it is not remembered.
_RACY_NS = 100_000_000


class StatCache:
    """A map from (group, path) to the hash that the file had when it was last read whole."""

    def __init__(self, path: Path, seal: Seal | None = None) -> None:
        self._path = path
        self._seal = seal or Seal()
        self._changed = False
        self._entries: dict[str, list[object]] = {}
        try:
            loaded = json.loads(self._seal.unwrap(path.name, path.read_bytes()) or b"")
        except (OSError, ValueError):
            # Not there, or not to be read: then files are read again, which costs time only.
            return
        if isinstance(loaded, dict) and loaded.get("format") == 1 and isinstance(loaded.get("files"), dict):
            self._entries = loaded["files"]

    def get(self, name: str, status: os.stat_result) -> str | None:
        """The remembered hash, or None when the file is unknown or its stat differs."""
        entry = self._entries.get(name)
        return str(entry[4]) if entry is not None and entry[:4] == _signature(status) else None

    def put(
        self, name: str, status: os.stat_result, value: str, *, settled: bool = False, taken_ns: int | None = None
    ) -> None:
        """Remember a hash. ``settled`` says that nobody writes to the file any more (a published object).

        ``taken_ns`` is the time at which ``status`` was taken, by default now: reading a large file takes longer
        than a tick, and what counts is how old the last change was before the reading began.
        """
        now = time.time_ns() if taken_ns is None else taken_ns
        if not settled and now - max(status.st_mtime_ns, status.st_ctime_ns) < _RACY_NS:
            return
        self._entries[name] = [*_signature(status), value]
        self._changed = True

    def drop(self, name: str) -> None:
        """Forget one file."""
        self._changed |= self._entries.pop(name, None) is not None

    def save(self) -> None:
        """Write the cache when it has changed."""
        if self._changed:
            text = json.dumps({"format": 1, "files": self._entries}, separators=(",", ":"))
            sealed = self._seal.wrap(self._path.name, text.encode())
            disk.write_file_atomic(self._path, sealed, durable=False)
            self._changed = False


def _signature(status: os.stat_result) -> list[object]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
