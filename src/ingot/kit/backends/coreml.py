"""Core ML packages: what can be read from the files. None is run: that needs a Mac, and code not written yet.

Weights lie in ``weight.bin``, a sequence of blobs aligned to 64 bytes, each behind a record of 64 bytes
(``MILBlob/Blob/StorageFormat.hpp`` of https://github.com/apple/coremltools): u32 0xDEADBEEF, u32 data type, u64 size
in bytes, u64 offset of the data in the file.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ingot.core.stage import Metric
from ingot.errors import RefusedInput

NOT_RUN = "Core ML packages are not run: it takes a Mac, and this version does not run them there either"
NOT_COUNTED = "a Core ML package does not tell weights from tables and scales"

_RECORD = struct.Struct("<IIQQ")
_MARK = 0xDEADBEEF
_ALIGN = 64
_TYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 5: "bfloat16", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1",
    10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a package says without being run."""

    precision: str
    metrics: dict[str, Metric]
    not_measured: dict[str, str]


def facts(folder: Path) -> Facts:
    """Size of all files of the package, and the type that most weight bytes are stored in."""
    total = sum(path.stat().st_size for path in folder.glob("*.mlpackage/**/*") if path.is_file())
    stored: Counter[str] = Counter()
    for path in sorted(folder.glob("*.mlpackage/Data/*/weights/weight.bin")):
        stored.update(stored_types(path))
    return Facts(
        max(sorted(stored), key=stored.__getitem__, default=""),
        {"bytes": Metric(total, "B", "size of all files of the package")},
        dict.fromkeys(("parameters", "bits_per_weight"), NOT_COUNTED),
    )


def stored_types(path: Path) -> Counter[str]:
    """Bytes by type of a ``weight.bin``. RefusedInput (E-EVAL-COREML) when it is not of the documented form."""
    found: Counter[str] = Counter()
    size = path.stat().st_size
    with path.open("rb") as file:
        at = _ALIGN  # the file's own header
        while at + _ALIGN <= size:
            file.seek(at)
            mark, kind, length, offset = _RECORD.unpack(file.read(_RECORD.size))
            if mark != _MARK or offset < at + _ALIGN or offset + length > size:
                raise RefusedInput("E-EVAL-COREML", f"{path.name} is damaged: no sound blob at byte {at}")
            found[_TYPES.get(kind, f"type {kind}")] += length
            at = -(-(offset + length) // _ALIGN) * _ALIGN
    return found
