"""The file of weights of a package: a sequence of blobs, each behind a record of 64 bytes and aligned to 64.

``MILBlob/Blob/StorageFormat.hpp`` of https://github.com/apple/coremltools: the file begins with u32 number of blobs,
u32 version; a record with u32 0xDEADBEEF, u32 data type, u64 size in bytes, u64 place of the data, u64 bits of padding.
A program names a blob by the place of its record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ingot.errors import StageFailed

_RECORD = struct.Struct("<IIQQQ")
_COUNT = struct.Struct("<I")
_MARK = 0xDEADBEEF
_ALIGN = 64
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A blob: where its record and its data lie, how many bytes it has, its type by number."""

    record: int
    begin: int
    size: int
    kind: int


def blob_at(file: BinaryIO, record: int) -> Blob:
    """The blob whose record lies there. StageFailed (E-COREML-SELFCHECK) when none does."""
    file.seek(record)
    raw = file.read(_RECORD.size)
    if len(raw) == _RECORD.size:
        mark, kind, size, begin, _ = _RECORD.unpack(raw)
        if mark == _MARK and begin >= record + _ALIGN:
            return Blob(record, begin, size, kind)
    raise StageFailed("E-COREML-SELFCHECK", f"the file of weights has no blob at byte {record}")


def blobs(file: BinaryIO) -> Iterator[Blob]:
    """All blobs in order."""
    file.seek(0)
    (count,) = _COUNT.unpack(file.read(_COUNT.size))
    at = _ALIGN
    for _ in range(count):
        blob = blob_at(file, at)
        yield blob
        at = -(-(blob.begin + blob.size) // _ALIGN) * _ALIGN


def append_missing(target: Path, other: Path) -> dict[int, int]:
    """Append to a file what only the other has: for each record of the other, where the same blob lies in ``target``.

    Blobs of the same type and bytes are the same, so what two functions share is stored once.
    """
    places = {}
    with target.open("r+b") as file, other.open("rb") as more:
        known = {_identity(file, blob): blob.record for blob in blobs(file)}
        for blob in list(blobs(more)):
            identity = _identity(more, blob)
            if identity not in known:
                known[identity] = _append(file, more, blob)
            places[blob.record] = known[identity]
    return places


def _identity(file: BinaryIO, blob: Blob) -> tuple[int, int, bytes]:
    digest = hashlib.sha256()
    file.seek(blob.begin)
    left = blob.size
    while left:
        data = file.read(min(_CHUNK, left))
        digest.update(data)
        left -= len(data)
    return blob.kind, blob.size, digest.digest()


def _append(file: BinaryIO, more: BinaryIO, blob: Blob) -> int:
    """Copy one blob to the end; the number of blobs, at the start, is one more."""
    end = file.seek(0, 2)
    record = -(-end // _ALIGN) * _ALIGN
    more.seek(blob.record)
    mark, kind, size, _, padding = _RECORD.unpack(more.read(_RECORD.size))
    file.write(bytes(record - end))
    file.write(_RECORD.pack(mark, kind, size, record + _ALIGN, padding).ljust(_ALIGN, b"\0"))
    more.seek(blob.begin)
    while size:
        data = more.read(min(_CHUNK, size))
        file.write(data)
        size -= len(data)
    file.seek(0)
    (count,) = _COUNT.unpack(file.read(_COUNT.size))
    file.seek(0)
    file.write(_COUNT.pack(count + 1))
    return record
