"""Lines beyond what a log has signed."""

from __future__ import annotations

import secrets
from pathlib import Path

from ingot.core import disk
from ingot.core.log import Log, read_small


def quarantine_tail(log: Log, offset: int, quarantine: Path) -> Path | None:
    """Move what lies beyond the signed lines aside, keeping its bytes; returns where to, None when there is none."""
    data = read_small(log.lines_path)
    if data is None or len(data) <= offset:
        return None
    disk.make_dirs_durable(quarantine)
    target = quarantine / f"log-{log.folder.name}-{secrets.token_hex(4)}.jsonl"
    disk.write_file_atomic(target, data[offset:])
    # Not synced: what is appended next is in the same file, and until then the lines are in both places.
    disk.truncate(log.lines_path, offset)
    return target
