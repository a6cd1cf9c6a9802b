"""The file of weights of a package, searched and added to. Its form: ``ingot.kit.mil.blobs``.

A program names a blob by the place of its record.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ingot.errors import StageFailed
from ingot.kit.mil.blobs import ALIGN, RECORD, Blob, blob_of

_COUNT = struct.Struct("<I")
_CHUNK = 1 << 20


def blob_at(file: BinaryIO, record: int) -> Blob:
    """The blob whose record lies there. StageFailed (E-COREML-SELFCHECK) when none does."""
    file.seek(record)
    blob = blob_of(file.read(RECORD.size), record, os.fstat(file.fileno()).st_size)
    if blob is None:
        raise StageFailed("E-COREML-SELFCHECK", f"the file of weights has no blob at byte {record}")
    return blob


def blobs(file: BinaryIO) -> Iterator[Blob]:
    """All blobs in order."""
    file.seek(0)
    (count,) = _COUNT.unpack(file.read(_COUNT.size))
    at = ALIGN
    for _ in range(count):
        blob = blob_at(file, at)
        yield blob
        at = -(-(blob.begin + blob.size) // ALIGN) * ALIGN


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
    record = -(-end // ALIGN) * ALIGN
    more.seek(blob.record)
    mark, kind, size, _, padding = RECORD.unpack(more.read(RECORD.size))
    file.write(bytes(record - end))
    file.write(RECORD.pack(mark, kind, size, record + ALIGN, padding).ljust(ALIGN, b"\0"))
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
