"""Where a registry keeps what: its paths, its locks between processes, and the user's signing keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingot.core import disk, locks
from ingot.core.log import Log, read_small
from ingot.core.note import SigningKey
from ingot.errors import RegistryDamaged, UsageError

#: How long a writer waits for another one; an append takes milliseconds.
WAIT_S = 60.0


@dataclass(frozen=True)
class Places:
    """Where a registry keeps what: all paths of it."""

    root: Path
    lock_file: Path
    quarantine: Path
    keys: Path
    pins: Path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file against other processes; Busy (E-BUSY) after WAIT_S."""
    disk.make_dirs(path.parent)
    with locks.held(path, "has been writing to the registry", WAIT_S):
        yield


def read_key(keys: Path, log: Log) -> SigningKey | None:
    """The signing key of a log from the user's key folder; None when this user has none (E-REG-KEY, E-KEY-MODE)."""
    path = keys / log.folder.name
    data = read_small(path)
    if data is None:
        return None
    if path.stat().st_mode & 0o077:
        raise UsageError(
            "E-KEY-MODE", f"others can read the signing key {path}", hint=f"chmod 600 {path} (and consider a new key)"
        )
    key = SigningKey.parse(data.decode("utf-8", "replace").removesuffix("\n"))
    if key.name != log.origin:
        raise RegistryDamaged("E-REG-KEY", f"the signing key {path} is of {key.name}")
    return key


def write_key(places: Places, log: Log, key: SigningKey) -> None:
    """Keep a new signing key, mode 0600; UsageError (E-KEY-PLACE) where git could pick it up."""
    if places.keys.resolve().is_relative_to(places.lock_file.parent.resolve()):
        raise UsageError(
            "E-KEY-PLACE",
            f"the key folder {places.keys} lies inside the project",
            hint="set XDG_CONFIG_HOME to a folder outside it: a signing key must never be committed",
        )
    disk.make_dirs_durable(places.keys, 0o700)
    disk.write_file_atomic(places.keys / log.folder.name, f"{key}\n".encode(), 0o600)
