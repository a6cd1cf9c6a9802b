"""A bounded look at a safetensors file before any library parses it.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length N, N bytes of
JSON ``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}``, then the data.
Offsets count from the end of the header. The data is covered exactly once: no gap, no overlap, no remainder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingot.core.digest import DuplicateKey, read_json
from ingot.errors import RefusedInput

_MAX_HEADER = 64 << 20
_MAX_VALUES = 4_000_000  # commas of a header, which bound what its values take in memory
_MAX_RANK = 32
_MAX_NAME = 1024

#: Bits of one element, by the format's dtype names.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of the header: dtype by the format's name, shape, and its bytes [begin, end) within the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_file(path: Path) -> tuple[Entry, ...]:
    """The entries of a safetensors file in order of their bytes; those without bytes in the header's order.

    RefusedInput: E-ST-SHORT (no whole header), E-ST-SIZE (header length out of bounds), E-ST-HEADER (not JSON of
    the right form), E-ST-DUPKEY, E-ST-NAME (a tensor's name that is a path or cannot be printed), E-ST-DTYPE,
    E-ST-BOUNDS (bytes outside the file or unlike shape and dtype), E-ST-OVERLAP (gap, overlap or bytes that belong
    to no tensor).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise _refuse("E-ST-SHORT", path, f"{size} bytes are too few for a header")
        (length,) = struct.unpack("<Q", head)
        if length > _MAX_HEADER or length > size - 8:
            raise _refuse("E-ST-SIZE", path, f"its header claims {length} bytes of a file of {size}")
        raw = file.read(length)
    entries = sorted(_entries(path, raw), key=lambda entry: (entry.begin, entry.end))
    _check_cover(path, entries, size - 8 - length)
    return tuple(entries)


def _entries(path: Path, raw: bytes) -> list[Entry]:
    # The reference reader accepts white space before the brace; what begins otherwise may be another format as well.
    if not raw.startswith(b"{") or raw.count(b",") > _MAX_VALUES:
        raise _refuse("E-ST-HEADER", path, "its header does not begin with '{', or holds millions of values")
    try:
        header = read_json(raw)
    except DuplicateKey as error:
        raise _refuse("E-ST-DUPKEY", path, "its header names something twice") from error
    except (ValueError, RecursionError) as error:
        raise _refuse("E-ST-HEADER", path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _refuse("E-ST-HEADER", path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse("E-ST-HEADER", path, "its __metadata__ is not a map of strings")
    for name in header:
        if not _is_plain(name):
            raise _refuse("E-ST-NAME", path, f"the name of a tensor is a path or cannot be printed: {name[:80]!r}")
    return [_entry(path, name, item) for name, item in header.items()]


def _is_plain(name: str) -> bool:
    """Whether a tensor's name is one wherever it is used: no path out of a folder, nothing unprintable."""
    parts = name.replace("\\", "/").split("/")
    return 0 < len(name) <= _MAX_NAME and name.isprintable() and ".." not in parts and bool(parts[0])


def _entry(path: Path, name: str, item: object) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _refuse("E-ST-HEADER", path, f"tensor {name!r} has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _refuse("E-ST-DTYPE", path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise _refuse("E-ST-HEADER", path, f"tensor {name!r} has a shape that is not a short list of sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _refuse("E-ST-HEADER", path, f"tensor {name!r} has data_offsets that are not two sizes")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPE_BITS[dtype] // 8:
        raise _refuse("E-ST-BOUNDS", path, f"tensor {name!r} of {dtype} {shape} does not take {end - begin} bytes")
    return Entry(name, dtype, tuple(shape), begin, end)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 53 for item in value)


def _check_cover(path: Path, entries: list[Entry], size: int) -> None:
    position = 0
    for entry in entries:
        if entry.end > size:
            raise _refuse("E-ST-BOUNDS", path, f"tensor {entry.name!r} ends at {entry.end} of {size} data bytes")
        if entry.begin != position:
            kind = "overlaps the one before" if entry.begin < position else "leaves a gap before it"
            raise _refuse("E-ST-OVERLAP", path, f"tensor {entry.name!r} {kind}")
        position = entry.end
    if position != size:
        raise _refuse("E-ST-OVERLAP", path, f"{size - position} bytes at its end belong to no tensor")


def _refuse(code: str, path: Path, what: str) -> RefusedInput:
    return RefusedInput(code, f"{path.name} is not a sound safetensors file: {what}")
