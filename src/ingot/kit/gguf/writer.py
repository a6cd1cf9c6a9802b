"""Write GGUF files tensor by tensor: header and metadata first, then data that is never held whole.

Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian): magic ``GGUF``, u32
version, u64 tensor count, u64 field count, the fields, the tensor table (name, u32 dimensions, u64 sizes innermost
first, u32 type, u64 offset from the start of the data), zeros up to a multiple of 32, then each tensor's data, padded
likewise. A string is a u64 length and UTF-8 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.kit.gguf.types import GGML_TYPES, tensor_bytes

ALIGNMENT = 32
VERSION = 3


@dataclass(frozen=True)
class Field:
    """One metadata field: its key and the bytes of its type and value."""

    key: str
    payload: bytes


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def u32(key: str, value: int) -> Field:
    """An unsigned 32-bit number."""
    return Field(key, struct.pack("<II", 4, value))


def u16(key: str, value: int) -> Field:
    """An unsigned 16-bit number."""
    return Field(key, struct.pack("<IH", 2, value))


def i32(key: str, value: int) -> Field:
    """A signed 32-bit number."""
    return Field(key, struct.pack("<Ii", 5, value))


def f32(key: str, value: float) -> Field:
    """A 32-bit float."""
    return Field(key, struct.pack("<If", 6, value))


def flag(key: str, *, value: bool) -> Field:
    """A truth value."""
    return Field(key, struct.pack("<I?", 7, value))


def text(key: str, value: str) -> Field:
    """A string."""
    return Field(key, struct.pack("<I", 8) + _string(value))


def texts(key: str, values: Sequence[str]) -> Field:
    """An array of strings."""
    return _array(key, 8, values, _string)


def f32s(key: str, values: Sequence[float]) -> Field:
    """An array of 32-bit floats."""
    return _array(key, 6, values, struct.Struct("<f").pack)


def i32s(key: str, values: Sequence[int]) -> Field:
    """An array of signed 32-bit numbers."""
    return _array(key, 5, values, struct.Struct("<i").pack)


def _array(key: str, item: int, values: Sequence[Any], pack: Callable[[Any], bytes]) -> Field:
    head = struct.pack("<IIQ", 9, item, len(values))
    return Field(key, head + b"".join(pack(value) for value in values))


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to come: its GGUF name, its shape as in torch (outermost first), its type."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        """The bytes of its data, without padding."""
        return tensor_bytes(self.type, self.shape)

    @property
    def padding(self) -> int:
        """The zeros behind its data."""
        return -self.nbytes % ALIGNMENT


def header(fields: Sequence[Field], tensors: Sequence[TensorInfo]) -> bytes:
    """All that stands before the data, padded. ValueError when a key or a name occurs twice."""
    for what, names in (("field", [field.key for field in fields]), ("tensor", [info.name for info in tensors])):
        if len(set(names)) != len(names):
            raise ValueError(f"a {what} occurs twice")
    head = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    head += [_string(field.key) + field.payload for field in fields]
    blob = b"".join(head + _table(tensors))
    return blob + bytes(-len(blob) % ALIGNMENT)


def write_gguf(path: Path, fields: Sequence[Field], tensors: Sequence[TensorInfo], data: Iterable[memoryview]) -> None:
    """Write a new file; ``data`` yields the bytes of ``tensors`` in the same order, one at a time.

    ValueError when a key or name occurs twice, or when data is missing, left over or of another size.
    """
    head = header(fields, tensors)
    with path.open("xb") as file:
        file.write(head)
        for info, content in zip(tensors, data, strict=True):
            view = content.cast("B")
            if view.nbytes != info.nbytes:
                raise ValueError(f"{info.name}: {view.nbytes} bytes given, {info.nbytes} expected")
            file.write(view)
            file.write(bytes(info.padding))


def _table(tensors: Sequence[TensorInfo]) -> list[bytes]:
    rows, offset = [], 0
    for info in tensors:
        sizes = tuple(reversed(info.shape))
        row = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, GGML_TYPES[info.type].number, offset)
        rows.append(_string(info.name) + row)
        offset += info.nbytes + info.padding
    return rows
