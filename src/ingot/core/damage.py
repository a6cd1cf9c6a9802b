"""Where a damaged artifact differs from what was published, as far as it can be known.

The registry holds a digest of each file, not its bytes, so the first wrong byte is known only where an intact copy of
the file is at hand: another object of the store that holds a file of the recorded SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.digest import fast_hash_file

if TYPE_CHECKING:
    from ingot.core.lookup import Lookup
    from ingot.core.store import Damage, Store

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Copy:
    """An intact copy of a file: where it lies, and in whose artifact."""

    path: Path
    target: str
    name: str


@dataclass(frozen=True)
class Wound:
    """One damaged file: what is wrong in words, and the first byte that differs (from 0) where that is known."""

    path: str
    detail: str
    byte: int | None = None


def examine(store: Store, lookup: Lookup, receipt: Mapping[str, Any], damage: Damage) -> Wound:
    """What can be said of one damaged file of the result in ``receipt``."""
    record = next((file for file in receipt["files"] if file["path"] == damage.path), None)
    broken = store.object_path(str(receipt["digest"])) / damage.path
    if record is None or not broken.is_file():
        return Wound(damage.path, damage.detail)
    copy = _intact_copy(store, lookup, receipt, record)
    byte = None if copy is None else first_difference(broken, copy.path)
    if copy is None or byte is None:
        other = damage.detail if broken.stat().st_size != record["size"] else "has other content and the right size"
        return Wound(damage.path, f"{other} (no intact copy is at hand that would show the first wrong byte)")
    size = f" ({damage.detail})" if broken.stat().st_size != record["size"] else ""
    return Wound(damage.path, f"byte {byte}{size}, compared with {copy.name} of {copy.target}", byte)


def _intact_copy(store: Store, lookup: Lookup, receipt: Mapping[str, Any], record: Mapping[str, Any]) -> Copy | None:
    for build in lookup.builds_with_file(str(record["sha256"])):
        for file in build["files"]:
            path = store.object_path(str(build["digest"])) / str(file["path"])
            itself = build["digest"] == receipt["digest"] and file["path"] == record["path"]
            if file["sha256"] == record["sha256"] and not itself and _is_whole(path, record):
                return Copy(path, str(build["target"]), str(file["path"]))
    return None


def _is_whole(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return path.stat().st_size == int(record["size"]) and fast_hash_file(path) == str(record["xxh3_128"])
    except OSError:
        return False  # one that cannot be read is no copy


def first_difference(one: Path, other: Path) -> int | None:
    """The offset (from 0) of the first byte in which two files differ; of the shorter one's end; None when equal."""
    offset = 0
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            left, right = first.read(_BLOCK), second.read(_BLOCK)
            if left != right:
                pairs = zip(left, right, strict=False)
                shorter = min(len(left), len(right))
                return offset + next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
            if not left:
                return None
            offset += len(left)
