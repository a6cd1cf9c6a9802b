"""The files of a GGUF: each written once, in order, and hashed as it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ingot.core.digest import FileRecord
from ingot.kit.gguf.writer import Field, TensorInfo, header

_BLOCK = 1 << 22


class Part:
    """One file: its header, its tensors, and once it was written its hashes."""

    def __init__(self, path: Path, fields: Sequence[Field], infos: Sequence[TensorInfo]) -> None:
        self.path, self.fields, self.infos = path, list(fields), infos
        self.head = header(self.fields, infos)
        self.size = len(self.head) + sum(info.nbytes + info.padding for info in infos)
        self.hashes: tuple[str, str] | None = None

    def complete(self, late: Sequence[Field]) -> None:
        """Write fields that were not known before, by their keys, and hash the file in one more read."""
        known = {item.key: item for item in late}
        self.fields = [known.get(item.key, item) for item in self.fields]
        head = header(self.fields, self.infos)
        if len(head) != len(self.head):
            raise ValueError("a late field changed the size of the header")
        hasher = _Hasher()
        with self.path.open("r+b") as file:
            file.write(head)
            file.seek(0)
            for chunk in _chunks(file):
                hasher.update(chunk)
        self.head, self.hashes = head, hasher.digests()

    def record(self) -> FileRecord:
        """The file as it was hashed."""
        assert self.hashes is not None, "closed before its hashes are asked for"
        return FileRecord(self.path.name, self.size, *self.hashes)


class OpenPart:
    """A part that is being written."""

    def __init__(self, part: Part, *, unhashed: bool) -> None:
        self.part = part
        self.file = part.path.open("xb")
        self._hasher = None if unhashed else _Hasher()
        self._left = list(reversed(part.infos))
        self._at: tuple[TensorInfo, Any, int] | None = None
        self._digests: dict[str, str] = {}
        self._put(part.head)

    def _put(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        if self._hasher is not None:
            self._hasher.update(data)

    def write(self, name: str, data: memoryview) -> None:
        """Append bytes of a tensor; its first ones end the tensor before. ValueError when they do not add up."""
        if self._at is None or self._at[0].name != name:
            self._end()
            info = self._left.pop()
            if info.name != name:
                raise ValueError(f"{name} came where {info.name} was due")
            self._at = (info, xxhash.xxh3_128(), 0)
        info, digest, done = self._at
        self._put(data)
        digest.update(data)
        self._at = (info, digest, done + data.nbytes)

    def _end(self) -> None:
        if self._at is not None:
            info, digest, done = self._at
            if done != info.nbytes:
                raise ValueError(f"{info.name}: {done} bytes given, {info.nbytes} expected")
            self._put(bytes(info.padding))
            self._digests[info.name] = digest.hexdigest()
            self._at = None

    def close(self) -> dict[str, str]:
        """The xxh3-128 of each tensor's data, by name."""
        self._end()
        self.file.close()
        if self._hasher is not None:
            self.part.hashes = self._hasher.digests()
        return self._digests


class _Hasher:
    def __init__(self) -> None:
        self._sha, self._fast = hashlib.sha256(), xxhash.xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        self._sha.update(data)
        self._fast.update(data)

    def digests(self) -> tuple[str, str]:
        return self._sha.hexdigest(), self._fast.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[memoryview]:
    view = memoryview(bytearray(_BLOCK))
    while count := file.readinto(view):  # type: ignore[attr-defined]
        yield view[:count]
