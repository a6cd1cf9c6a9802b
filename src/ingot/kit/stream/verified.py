"""Files read once, front to back: what is read is hashed in the same read, into memory that is used again."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from ingot.core import files
from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput, StoreDamaged

Bytes = npt.NDArray[np.uint8]

#: Smaller pieces are not worth keeping, larger ones are rare and would be kept for nothing.
_LEAST, _MOST = 1 << 20, 64 << 20
_SKIP = 4 << 20


class Buffers:
    """Memory for blocks, handed out again once no tensor views the last block that lay in it."""

    def __init__(self) -> None:
        self._free: dict[int, list[Bytes]] = {}

    def take(self, size: int) -> Bytes:
        """``size`` bytes of any content."""
        if not _LEAST <= size <= _MOST:
            return np.empty(size, np.uint8)
        room = 1 << (size - 1).bit_length()
        free = self._free.setdefault(room, [])
        try:
            chunk = free.pop()
        except IndexError:
            chunk = np.empty(room, np.uint8)
        lease = chunk[:size]
        weakref.finalize(lease, free.append, chunk).atexit = False
        return lease


class VerifiedFile:
    """A regular file read front to back; ``finish`` compares its xxh3-128 and size with what they must be.

    ``expected`` None compares nothing. StoreDamaged (E-OBJECT-DAMAGED) for another content; RefusedInput (E-ST-SHORT)
    for a file that ends early where nothing was expected of it.
    """

    def __init__(self, path: Path, expected: FileRecord | None, buffers: Buffers) -> None:
        self.path = path
        self._expected = expected
        self._buffers = buffers
        self._hash = xxhash.xxh3_128()
        self._read = 0
        self._file = os.fdopen(files.open_regular(path), "rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def at(self) -> int:
        """How many bytes were read."""
        return self._read

    def take(self, size: int) -> Bytes:
        """The next ``size`` bytes."""
        piece = self._buffers.take(size)
        view, filled = memoryview(piece), 0  # type: ignore[arg-type]
        while filled < size:
            count = self._file.readinto(view[filled:])
            if not count:
                raise self._other(f"ends after {self._read + filled} bytes")
            filled += count
        self._hash.update(view)
        self._read += size
        return piece

    def skip(self, size: int) -> None:
        """Read the next ``size`` bytes for the hash alone."""
        while size > 0:
            size -= len(self.take(min(size, _SKIP)))

    def finish(self) -> None:
        """After the last byte that anybody wants: read what is left, and compare."""
        self.skip(self.size - self._read)
        if self._file.read(1):
            raise self._other("grew while it was read")
        expected = self._expected
        if expected is None:
            return
        if expected.size != self._read:
            raise self._other(f"has {self._read} bytes, not {expected.size}")
        if expected.xxh3_128 != self._hash.hexdigest():
            raise self._other("has other content")

    def _other(self, what: str) -> RefusedInput | StoreDamaged:
        if self._expected is None:
            return RefusedInput("E-ST-SHORT", f"{self.path.name} {what}")
        return damaged(self.path, what)


def damaged(path: Path, what: str) -> StoreDamaged:
    """A file of the store that is not what the registry says."""
    return StoreDamaged("E-OBJECT-DAMAGED", "an input is damaged in the store", facts=[f"{path.name} {what}"])


def expectation(path: Path, expected: Mapping[str, FileRecord] | None) -> FileRecord | None:
    """What the registry says of a file of an input; StoreDamaged when it says nothing, None without a list."""
    if expected is None:
        return None
    if path.name not in expected:
        raise damaged(path, "is not in the registry's list")
    return expected[path.name]


class TensorHash:
    """xxh3-128 of each tensor's bytes, as they come."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._open: dict[str, Any] = {}

    def update(self, name: str, piece: Any, *, last: bool) -> None:
        """The next bytes of a tensor; ``last`` closes it."""
        state = self._open.pop(name, None) or xxhash.xxh3_128()
        state.update(piece)
        if last:
            self.digests[name] = state.hexdigest()
        else:
            self._open[name] = state
