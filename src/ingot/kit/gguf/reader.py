"""GGUF read with suspicion: every count, length and offset is checked against the file before it is used.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: magic ``GGUF``, u32 version, u64
tensor count, u64 key count; the keys; the tensor infos (name, dimensions fastest first, type, offset); padding to
``general.alignment``; the data. Tensors are then dequantized one by one through gguf-py.
"""

from __future__ import annotations

import itertools
import math
import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput
from ingot.kit.gguf.writer import Field

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_NAME = 1 << 16
_MAX_DIMS = 4

#: struct format of the scalar value types; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape as torch has it (rows first), ggml type, bytes [begin, begin + size) of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    size: int

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Gguf:
    """A checked GGUF: its metadata and tensors; arrays of numbers are numpy arrays, of strings lists."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    _data: npt.NDArray[np.uint8] = field(repr=False)

    def raw(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor as they lie in the file."""
        return self._data[info.begin : info.begin + info.size]

    def dequantized(self, info: TensorInfo) -> npt.NDArray[np.float32]:
        """A tensor's weights as float32. RefusedInput (E-GGUF-TYPE) for a type that gguf-py cannot dequantize."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[info.type]
        rows = self.raw(info).reshape(-1, info.size // max(1, info.elements // info.shape[-1]))
        try:
            weights = dequantize(rows, kind)
        except NotImplementedError as error:
            raise _refuse("E-GGUF-TYPE", self.path, f"tensor {info.name!r} has type {info.type}") from error
        # F32 comes back as a view of the read-only mapping; torch wants memory of its own
        return np.require(weights, np.float32, ["C", "W"]).reshape(info.shape)


def find_gguf(folder: Path) -> Path | None:
    """The one GGUF of a folder, known by its magic; of one that is split the first part; None without one.

    RefusedInput: E-GGUF-MANY for several, E-GGUF-SPLIT for parts that are not all there.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(4) == b"GGUF":
                    found.append(path)
    if len(found) > 1 and not _are_parts(found):
        names = ", ".join(path.name for path in found)
        raise RefusedInput("E-GGUF-MANY", "the folder holds more than one GGUF", facts=[f"files: {names}"])
    return parts_of(found[0])[0] if found else None


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def _are_parts(paths: Sequence[Path]) -> bool:
    matches = [_PART.fullmatch(path.name) for path in paths]
    return all(matches) and len({(match[1], match[3]) for match in matches if match}) == 1


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the model whose first, or only, file this is. RefusedInput (E-GGUF-SPLIT) when one is missing."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match[3])
    parts = tuple(path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise _refuse("E-GGUF-SPLIT", path, f"{len(missing)} of its {count} parts are missing, first {missing[0]}")
    return parts


def read_gguf(path: Path) -> Gguf:
    """Check and open a GGUF; tensors are read later, one by one.

    RefusedInput: E-GGUF-MAGIC, E-GGUF-VERSION, E-GGUF-COUNT, E-GGUF-LENGTH (a length beyond the end of the file),
    E-GGUF-VALUE (a value or name of the wrong form), E-GGUF-TYPE, E-GGUF-BOUNDS, E-GGUF-OVERLAP, E-GGUF-DUPLICATE,
    E-GGUF-TRAILING (bytes that belong to no tensor).
    """
    if path.stat().st_size < 24:
        raise _refuse("E-GGUF-LENGTH", path, "it is too short for a header")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, mapped)
    if cursor.take(4) != b"GGUF":
        raise _refuse("E-GGUF-MAGIC", path, "it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version not in (2, 3):
        raise _refuse("E-GGUF-VERSION", path, f"its version is {version}, not 2 or 3 (little-endian)")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        raise _refuse("E-GGUF-COUNT", path, f"it claims {n_tensors} tensors and {n_keys} keys")
    metadata = _metadata(cursor, n_keys)
    infos = [_tensor_info(cursor) for _ in range(n_tensors)]
    tensors = _place(cursor, infos, _alignment(path, metadata))
    return Gguf(path, version, metadata, tensors, np.frombuffer(mapped, dtype=np.uint8))


def fields_of(path: Path) -> list[Field]:
    """The metadata of a GGUF that ``read_gguf`` took, as bytes that can be written again."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, mapped)
    cursor.take(16)
    fields = []
    for _ in range(cursor.number("Q")):
        key, start = cursor.string(_MAX_NAME), cursor.at
        cursor.value()
        fields.append(Field(key, mapped[start : cursor.at]))
    return fields


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise _refuse("E-GGUF-LENGTH", self.path, f"{length} bytes at {self.at} pass the end of the file")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def string(self, limit: int | None = None) -> str:
        length = self.number("Q")
        if limit is not None and length > limit:
            raise _refuse("E-GGUF-LENGTH", self.path, f"a name at {self.at} claims {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise _refuse("E-GGUF-VALUE", self.path, f"the text at {self.at} is not UTF-8") from error

    def strings(self, count: int) -> list[str]:
        """So many texts: a vocabulary has hundreds of thousands, too many for a few calls each."""
        data, end, length_at, found = self.data, len(self.data), struct.Struct("<Q").unpack_from, list[str]()
        for _ in range(count):
            start = self.at + 8
            stop = start + length_at(data, self.at)[0] if start <= end else end + 1
            try:
                if stop <= end:
                    found.append(data[start:stop].decode())
                    self.at = stop
                    continue
            except UnicodeDecodeError:
                pass
            # What is wrong with it is said where one text is read.
            found.append(self.string())
        return found

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _refuse("E-GGUF-VALUE", self.path, f"unknown value type {kind} at {self.at}")
        return self.number(_SCALARS[kind])

    def array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        least = 8 if kind == _STRING else struct.calcsize(_SCALARS.get(kind, "B"))
        if count * least > len(self.data) - self.at:
            raise _refuse("E-GGUF-LENGTH", self.path, f"an array at {self.at} claims {count} items")
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            raise _refuse("E-GGUF-VALUE", self.path, f"an array at {self.at} has item type {kind}")
        return np.frombuffer(self.take(count * least), dtype=np.dtype(f"<{_SCALARS[kind]}"))


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string(_MAX_NAME)
        if key in metadata:
            raise _refuse("E-GGUF-DUPLICATE", cursor.path, f"the key {key!r} is there twice")
        metadata[key] = cursor.value()
    return metadata


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):
        raise _refuse("E-GGUF-VALUE", path, f"general.alignment is {value!r}, not a power of two up to 1 MiB")
    return value


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(_MAX_NAME)
    dims = cursor.number("I")
    if not 1 <= dims <= _MAX_DIMS:
        raise _refuse("E-GGUF-VALUE", cursor.path, f"tensor {name!r} has {dims} dimensions")
    shape = tuple(reversed([int(cursor.number("Q")) for _ in range(dims)]))
    if 0 in shape or math.prod(shape) >= 1 << 48:
        raise _refuse("E-GGUF-VALUE", cursor.path, f"tensor {name!r} has the shape {shape}")
    return name, shape, cursor.number("I"), cursor.number("Q")


def _place(
    cursor: _Cursor, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int
) -> tuple[TensorInfo, ...]:
    """Tensors with their bytes in the file: known type, whole blocks, aligned, inside the file, apart."""
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise _refuse("E-GGUF-DUPLICATE", cursor.path, f"the tensor {name!r} is there twice")
        type_name, size = _bytes_of(cursor.path, name, shape, kind)
        if offset % alignment or start + offset + size > len(cursor.data):
            raise _refuse("E-GGUF-BOUNDS", cursor.path, f"tensor {name!r} lies outside the file or is not aligned")
        tensors[name] = TensorInfo(name, shape, type_name, start + offset, size)
    ordered = sorted(tensors.values(), key=lambda info: info.begin)
    for before, after in itertools.pairwise(ordered):
        if before.begin + before.size > after.begin:
            raise _refuse("E-GGUF-OVERLAP", cursor.path, f"tensors {before.name!r} and {after.name!r} share bytes")
    _refuse_unused(cursor, ordered, start, alignment)
    return tuple(ordered)


def _refuse_unused(cursor: _Cursor, ordered: list[TensorInfo], start: int, alignment: int) -> None:
    """Between tensors and at the end only padding may lie: anything else would be another file inside this one."""
    position = start
    for info in ordered:
        if info.begin - position >= alignment:
            raise _refuse("E-GGUF-TRAILING", cursor.path, f"bytes before {info.name!r} belong to no tensor")
        position = info.begin + info.size
    if len(cursor.data) - position >= alignment:
        raise _refuse("E-GGUF-TRAILING", cursor.path, f"{len(cursor.data) - position} bytes at its end are no tensor's")


def _bytes_of(path: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise _refuse("E-GGUF-TYPE", path, f"tensor {name!r} has the unknown type {kind}") from None
    block, size = GGML_QUANT_SIZES[known]
    if shape[-1] % block:
        raise _refuse("E-GGUF-VALUE", path, f"tensor {name!r} has rows of {shape[-1]}, no multiple of {block}")
    return known.name, math.prod(shape) // block * size


def _refuse(code: str, path: Path, what: str) -> RefusedInput:
    return RefusedInput(code, f"{path.name} is not a sound GGUF: {what}")
