"""Checkpoints: what an attempt that was ended leaves for the next attempt at the same key.

``cache/checkpoints/<key>/<n>/`` is the folder that a stage is given (``Given.checkpoints``); ``n`` is how many builds
of the key this user's logs held when the attempt began. Laws:

- It belongs to the key, so to the same parameters, inputs and tools; it is used under the lock of the key, and only
  once no process of an earlier attempt lives (``attempt.json`` beside it names its staging folder, whose lock those
  processes inherit).
- It is dropped after the build is recorded. What a crash leaves between the two belongs to a build that is recorded,
  which its number tells: no attempt is given it, and the end of the next run drops it. So a build that is wanted again
  (``doit -a``, ``doit forget``) never goes on from the end of the one before, and one that was itself ended goes on.
- Whatever else ends an attempt keeps it: an error, a kill, Ctrl-C. No run drops what is of a key that no spec has now:
  it may be wanted again on another branch (``doit doctor`` shows it).

Each entry directly in the folder whose name does not begin with a dot is one checkpoint, a file or a folder, and
appears whole, by rename. The kind syncs what it writes; the names of the folders are not synced here: a power cut may
take a whole attempt, never mix two.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core import disk, locks
from ingot.core.quantities import about_text
from ingot.core.staging import Staging, bytes_below, remove_tree
from ingot.errors import Busy, IngotError

_FOLDER = "checkpoints"
_KEY = re.compile(r"[0-9a-f]{64}")
#: More than ``attempt.json`` ever has.
_MAX_BYTES = 1 << 16
#: How long processes of an earlier attempt may take to end: the kernel ends them with whoever started them.
_PATIENCE_S, _POLL_S = 10.0, 0.02


@dataclass(frozen=True)
class Kept:
    """What an attempt has left: its key and target, how many checkpoints, their bytes, when the newest was written."""

    key: str
    target: str
    count: int
    bytes: int
    written: float

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it, with the time in seconds since 1970."""
        return {"checkpoints": self.count, "bytes": self.bytes, "written": round(self.written, 3)}

    def words(self, now: float | None = None) -> str:
        """``3 checkpoints, the newest of 4 min ago``."""
        age = max((time.time() if now is None else now) - self.written, 0.0)
        return f"{self.count} checkpoint{'s' * (self.count != 1)}, the newest of {about_text(age)} ago"


@contextmanager
def attempt(store: Path, key: str, built: int, staging: Staging, target: str) -> Iterator[tuple[Path, int]]:
    """The folder that an attempt is given (``begin``), and how many checkpoints lie there.

    A failure says what is kept.
    """
    try:
        folder = begin(store, key, built, staging, target)
        left = kept(store, key, built)
        yield folder, 0 if left is None else left.count
    except IngotError as error:
        left = kept(store, key, built)
        if left is not None:
            error.facts = (*error.facts, f"kept: {left.words()}; the next run goes on from there")
        raise


def begin(store: Path, key: str, built: int, staging: Staging, target: str) -> Path:
    """The folder that an attempt is given, under the lock of its key; ``built`` builds of the key are recorded.

    Busy (E-BUSY) when a process of an earlier attempt does not end.
    """
    place = store / _FOLDER / key
    _wait_for(store, place)
    _drop_others(place, str(built))
    folder = place / str(built)
    disk.make_dirs(folder, 0o700)
    about = {"format": 1, "target": target, "staging": staging.root.name}
    disk.write_file_atomic(place / "attempt.json", json.dumps(about).encode(), durable=False)
    return folder


def _wait_for(store: Path, place: Path) -> None:
    name = str(_about(place).get("staging", ""))
    if not re.fullmatch(r"[0-9a-f]+", name):
        return
    lock, deadline = store / "staging" / f"{name}.lock", time.monotonic() + _PATIENCE_S
    while locks.is_held(lock):
        if time.monotonic() > deadline:
            raise Busy(
                "E-BUSY",
                "a process that an ended build of this target started still runs and may write its checkpoints",
                facts=[f"it holds {lock}"],
                hint="end it (lsof names it), then run doit again",
            )
        time.sleep(_POLL_S)


def _drop_others(place: Path, name: str) -> None:
    """Drop what lies in the place of a key beside the folder of this name, and whatever is no folder there."""
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
        place.unlink()
    for entry in _entries(place):
        if entry.name == "attempt.json":
            continue
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
        elif entry.name != name:
            remove_tree(Path(entry.path))


def drop(store: Path, key: str) -> None:
    """Drop all that was kept of a key, whose build is recorded; what cannot be removed is left to the next run."""
    with suppress(OSError):
        remove_tree(store / _FOLDER / key)


def kept(store: Path, key: str, built: int) -> Kept | None:
    """What the next attempt at a key would go on from; None when there is nothing."""
    place = store / _FOLDER / key
    found = [entry for entry in _entries(place / str(built)) if not entry.name.startswith(".")]
    if not found:
        return None
    written = 0.0
    for entry in found:
        # A build that runs drops its older ones.
        with suppress(FileNotFoundError):
            written = max(written, entry.stat(follow_symlinks=False).st_mtime)
    return Kept(key, str(_about(place).get("target", "")), len(found), bytes_below(place), written)


def sweep(store: Path, built: Callable[[str], int]) -> int:
    """Drop what is left of builds that are recorded; ``built`` counts those of a key. Returns how many keys."""
    swept = 0
    for key in _keys(store):
        numbers = [entry.name for entry in _entries(store / _FOLDER / key)]
        if str(built(key)) in numbers:
            continue
        # Whoever holds the lock is between its commit and its own drop, or begins anew.
        with suppress(Busy), locks.held(store / "locks" / f"{key}.lock", "builds this target", 0.0):
            swept += remove_tree(store / _FOLDER / key)
    return swept


def all_kept(store: Path, built: Callable[[str], int]) -> list[Kept]:
    """What is kept of every key."""
    found = (kept(store, key, built(key)) for key in _keys(store))
    return [item for item in found if item is not None]


def _keys(store: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(store / _FOLDER) if _KEY.fullmatch(entry.name))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder; nothing when there is none, or something else is in its place."""
    try:
        with os.scandir(folder) as entries:
            yield from list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise disk.failure(error, folder) from error


def _about(place: Path) -> dict[str, Any]:
    """What the last attempt said of itself; empty when nothing of it can be read."""
    with suppress(OSError, ValueError):
        with (place / "attempt.json").open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
        return found if isinstance(found, dict) else {}
    return {}
