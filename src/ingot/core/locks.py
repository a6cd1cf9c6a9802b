"""Locks between processes, and between threads: ``flock`` on a file that says who holds it.

The kernel gives a lock back when its holder dies, however it dies. No lock is inherited by what a build starts: the
descriptors are closed on exec, and the server that forks stages is a program of its own. What the file says (process,
host, since when) is for people and decides nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.core import disk, procfs
from ingot.errors import Busy

#: Between two attempts.
_POLL_S = 0.005
#: More than any holder writes.
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """Who took a lock last: its process, the host that it runs on, and when (RFC 3339, UTC)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def stopped(self) -> bool:
        """Whether it is known to be suspended, so that it will not go on by itself."""
        return self.host == socket.gethostname() and procfs.state(self.pid) in ("T", "t")


def holder(path: Path) -> Holder | None:
    """Who says in a lock file to hold it; None when it says nothing, or its process is known to be gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fields = json.loads(os.read(descriptor, _MAX_BYTES))
        finally:
            os.close(descriptor)
        found = Holder(int(fields["pid"]), str(fields["host"]), str(fields["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A file keeps the name of its last holder; the next one may not have written its own yet.
    gone = found.host == socket.gethostname() and procfs.state(found.pid) is None
    return None if gone else found


def is_held(path: Path) -> bool:
    """Whether another process holds the ``flock`` of a file, asked without keeping it; False when there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk.failure(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, what: str, wait_s: float) -> Iterator[None]:
    """Hold a lock for a moment; Busy (E-BUSY) after ``wait_s``, with who holds it. Not re-entrant.

    ``what`` goes on from "another process": ``has been writing to the registry``.
    """
    deadline = time.monotonic() + wait_s
    descriptor = _try(path)
    while descriptor is None:
        if time.monotonic() > deadline:
            raise _busy(path, f"another process {what} for more than {wait_s:.0f} s")
        time.sleep(_POLL_S)
        descriptor = _try(path)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_for_long(path: Path, waiting: Callable[[Holder | None], None]) -> Iterator[None]:
    """Hold a lock that others may keep for hours; it is waited for, and ``waiting`` is told once by whom it is held."""
    descriptor = _try(path)
    if descriptor is None:
        waiting(_introduced(path))
    while descriptor is None:
        time.sleep(_POLL_S)
        descriptor = _try(path, block=True)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold a lock together with others; whoever holds it alone (``held``) is waited for: that is never for long."""
    descriptor = _try(path, block=True, mode=fcntl.LOCK_SH)
    while descriptor is None:
        descriptor = _try(path, block=True, mode=fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(descriptor)


def _try(path: Path, *, block: bool = False, mode: int = fcntl.LOCK_EX) -> int | None:
    """The descriptor that holds the lock; None when another holds it, or the file was replaced meanwhile."""
    with disk.explained(path):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, mode | (0 if block else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                _sign(descriptor)
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever holds a file that has lost its name keeps nobody out.
        os.close(descriptor)
        return None


def _introduced(path: Path) -> Holder | None:
    """The holder, who may have taken the lock a moment ago and not have written who it is yet."""
    for _attempt in range(10):
        found = holder(path)
        if found is not None:
            return found
        time.sleep(_POLL_S)
    return None


def _sign(descriptor: int) -> None:
    """Write who holds the lock. It holds all the same where there is no room to say so."""
    since = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since))) + "\n"
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _busy(path: Path, what: str) -> Busy:
    found = holder(path)
    hint = "wait for the other process, or end it if it hangs"
    if found is not None and found.stopped:
        hint = f"that process is stopped: kill -CONT {found.pid} lets it go on, kill -KILL {found.pid} ends it"
    who = [] if found is None else [f"held by {found}"]
    return Busy("E-BUSY", what, facts=[*who, f"the lock: {path}"], hint=hint)
