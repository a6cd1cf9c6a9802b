"""Files that others made: only regular ones are opened, and none that claims what the disk does not hold."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ingot.errors import RefusedInput

#: A file of which less than a hundredth is on the disk, from this size on, is a trap and no content.
_SPARSE_BYTES, _SPARSE_SHARE = 1 << 30, 100


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, links not followed; OSError for anything else. Never waits, as a pipe would."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a regular file; links in its own name are not followed."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(most)


def refuse_sparse(name: str, status: os.stat_result) -> None:
    """RefusedInput (E-LIMIT) for a file that is nearly all hole: reading a terabyte of nothing takes hours."""
    if status.st_size >= _SPARSE_BYTES and status.st_blocks * 512 < status.st_size // _SPARSE_SHARE:
        raise RefusedInput(
            "E-LIMIT",
            f"{name} claims {status.st_size:,} bytes, of which the disk holds {status.st_blocks * 512:,}",
            hint="it is a sparse file: write its content out, or leave it away",
        )
