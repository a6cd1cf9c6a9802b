"""The small values of the index: how far a log was read, and what entries are ordered and known by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.registry import Entry, Stamp


class Seen(NamedTuple):
    """How far a log has been read: its head, the latest time up to there, the last entry read or its SHA-256."""

    size: int
    root: str
    time: str
    last: Entry | str


def stamp_of(values: list[int]) -> Stamp:
    """The stat of a file of lines, as it was stored."""
    inode, size, mtime, ctime = values
    return inode, size, mtime, ctime


def place_in_time(item: tuple[str, Entry]) -> tuple[str, str, int]:
    """What an entry is sorted by."""
    time, entry = item
    return time, entry.origin, entry.index


def holds(builds: list[dict[str, Any]], digest: str) -> bool:
    """Whether one of these builds wrote a digest."""
    return any(build["digest"] == digest for build in builds)


def hash_of(last: Entry | str) -> str:
    """The SHA-256 of the last entry that was read."""
    return last if isinstance(last, str) else sha256_bytes(canonical_json(last.statement))


def order(place: Mapping[str, Any]) -> tuple[str, str, int]:
    """As ``place_in_time``, of a receipt that has its time."""
    return str(place["time"]), str(place["origin"]), int(place["index"])


def gate_identity(fields: Mapping[str, Any]) -> str:
    """One failure or warning of a gate, as the log records it once: (type, digest, gate, limit, reference)."""
    named = {name: fields.get(name) for name in ("type", "digest", "gate", "limit", "reference")}
    return sha256_bytes(canonical_json(named))
