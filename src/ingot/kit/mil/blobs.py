"""Stored weights: ``weight.bin`` as ``MILBlob/Blob/StorageFormat.hpp`` of coremltools' source has it.

The file begins with 64 bytes: u32 count of blobs, u32 version. Each blob has a record of 64 bytes at a multiple of 64:
u32 0xDEADBEEF, u32 data type, u64 size in bytes, u64 offset of the data in the file, u64 padding in bits (of types that
share bytes). Elements of fewer than 8 bits follow each other without gaps, each from its lowest bit on, the first in
the lowest bits of the first byte.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput
from ingot.kit.mil.types import DTYPES, Array, Dtype, TensorType

RECORD = struct.Struct("<IIQQQ")
ALIGN = 64
_MARK = 0xDEADBEEF
#: ``BlobDataType`` of the format, by the names that ``MIL.DataType`` uses.
_TYPES = {
    1: "FLOAT16", 2: "FLOAT32", 3: "UINT8", 4: "INT8", 5: "BFLOAT16", 6: "INT16", 7: "UINT16", 8: "INT4", 9: "UINT1",
    10: "UINT2", 11: "UINT4", 12: "UINT3", 13: "UINT6", 14: "INT32", 15: "UINT32",
}  # fmt: skip
#: Elements that are unpacked at a time: a multiple of 8, so that a step begins and ends at whole bytes.
_STEP = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A blob: where its record and its data lie, how many bytes it has, its type by number."""

    record: int
    begin: int
    size: int
    kind: int


def blob_of(record: bytes, at: int, end: int) -> Blob | None:
    """The blob whose record, at ``at`` of a file of ``end`` bytes, is this; None when none can lie there."""
    if at < ALIGN or at % ALIGN or len(record) < RECORD.size:
        return None
    mark, kind, size, begin, _ = RECORD.unpack_from(record)
    sound = mark == _MARK and at + ALIGN <= begin <= begin + size <= end
    return Blob(at, begin, size, kind) if sound else None


class Blobs:
    """The weights of one file, read where they lie; a mapping, so that only what is used is in memory."""

    def __init__(self, path: Path) -> None:
        """RefusedInput (E-MIL-BLOB) for a file that is too short to have a header."""
        self.path = path
        self.size = path.stat().st_size
        if self.size < ALIGN:
            raise _damaged(path, f"it has {self.size} bytes, fewer than its header")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def record(self, at: int) -> tuple[str, int, int]:
        """(type, bytes, offset of the data) of the record at an offset. RefusedInput (E-MIL-BLOB) if there is none."""
        blob = blob_of(self._map[at : at + ALIGN], at, self.size)
        if blob is None:
            raise _damaged(self.path, f"no sound blob at byte {at} of {self.size}")
        return _TYPES.get(blob.kind, f"type {blob.kind}"), blob.size, blob.begin

    def check(self, at: int, kind: TensorType) -> tuple[int, int]:
        """(bytes, offset of the data) of the tensor at an offset. RefusedInput (E-MIL-BLOB) if another lies there."""
        name, length, offset = self.record(at)
        # both are 8 bits without a sign, and coremltools writes truth values as such
        fits = DTYPES.get(name) == kind.dtype or (kind.dtype.name == "bool" and name == "UINT8")
        if not fits or length != kind.dtype.bytes_of(kind.elements):
            wanted = f"{kind.dtype.bytes_of(kind.elements)} bytes of {kind.dtype.name}"
            raise _damaged(self.path, f"the blob at byte {at} has {length} bytes of {name.lower()}, not {wanted}")
        return length, offset

    def read(self, at: int, kind: TensorType) -> Array:
        """The tensor at an offset, in the type that it is computed in. RefusedInput (E-MIL-BLOB) as ``check``."""
        length, offset = self.check(at, kind)
        return decode(np.frombuffer(self._map, np.uint8, length, offset), kind)


def decode(data: npt.NDArray[np.uint8], kind: TensorType) -> Array:
    """Bytes as they are stored → a tensor of ``kind``, in the type that it is computed in, never a view of them."""
    dtype = kind.dtype
    shape = tuple(size or 0 for size in kind.shape)
    if dtype.packed:
        return unpack(data, dtype, kind.elements).reshape(shape)
    found: Array = data.view(dtype.outside.newbyteorder("<")).astype(dtype.inside)
    return found.reshape(shape)


def unpack(data: npt.NDArray[np.uint8], dtype: Dtype, count: int) -> Array:
    """The first ``count`` elements of a packed type."""
    found = np.empty(count, dtype.inside)
    weights = (1 << np.arange(dtype.bits)).astype(np.uint8)
    for start in range(0, count, _STEP):
        stop = min(start + _STEP, count)
        bits = np.unpackbits(data[start * dtype.bits // 8 : dtype.bytes_of(stop)], bitorder="little")
        values = (bits[: (stop - start) * dtype.bits].reshape(-1, dtype.bits) * weights).sum(1, dtype=np.uint8)
        if dtype.signed:
            half = 1 << (dtype.bits - 1)
            values = (values ^ half).astype(np.int8) - np.int8(half)
        found[start:stop] = values
    return found


def _damaged(path: Path, what: str) -> RefusedInput:
    return RefusedInput(
        "E-MIL-BLOB", f"{path.name} is damaged: {what}", hint="build the package again; it was changed by hand or cut"
    )
