"""Importance matrices: read in both of llama.cpp's forms, written in the newer one.

An entry holds, for a matrix, the sum of the squares of each of its inputs over the tokens seen, and how many those were
(tools/imatrix and common/imatrix-loader of llama.cpp). The GGUF form has two F32 tensors an entry, ``NAME.in_sum2``
and ``NAME.counts``. The older form (``.dat``), little-endian: i32 entries; each an i32 length and the name, i32 calls,
i32 values, that many float32 (mean of the squares times calls); then, optionally, i32 chunks and an i32 length and the
name of the data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.reader import find_gguf, read_gguf
from ingot.kit.gguf.writer import Field, TensorInfo, text, texts, u32, write_gguf

_MAX_ENTRIES, _MAX_NAME, _MAX_VALUES = 1 << 20, 1 << 10, 1 << 24
_FORMS = "it is what llama-imatrix or 'kind: imatrix' writes"


@dataclass(frozen=True)
class Entry:
    """Sums of squares by input, and the tokens they are of; more than one count for a matrix of experts."""

    sums: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Imatrix:
    """The entries by tensor, over how many chunks of how many tokens; ``chunk_size`` is 0 in the older form."""

    entries: Mapping[str, Entry]
    chunks: int
    chunk_size: int

    def weights(self) -> dict[str, torch.Tensor]:
        """The weight of each column, as llama.cpp's quantizer is told: the mean of the squares; 1 where none was seen.

        RefusedInput (E-IMATRIX) for one that is not finite.
        """
        found = {}
        for name, entry in self.entries.items():
            sums = entry.sums.reshape(len(entry.counts), -1)
            counts = entry.counts[:, None]
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                mean = np.where(counts > 0, sums / counts, np.float32(1)).astype(np.float32)
            if not np.isfinite(mean).all():
                raise RefusedInput("E-IMATRIX", f"the importance matrix holds a value for {name!r} that is not finite")
            found[name] = torch.from_numpy(mean.reshape(-1))
        return found

    def fields(self) -> tuple[Field, ...]:
        """What llama-quantize writes into a file that it made with the matrix, but for names of files."""
        chunks = [u32("quantize.imatrix.chunks_count", self.chunks)] if self.chunks > 0 else []
        return (u32("quantize.imatrix.entries_count", len(self.entries)), *chunks)


def imatrix_file(folder: Path) -> Path:
    """The file of an artifact: its one GGUF, else its one file. RefusedInput (E-IMATRIX)."""
    found = find_gguf(folder)
    if found is not None:
        return found
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    if len(files) != 1:
        raise RefusedInput("E-IMATRIX", "the folder holds no importance matrix", facts=[f"files: {len(files)}"])
    return files[0]


def read_imatrix(path: Path) -> Imatrix:
    """Read either form. RefusedInput: E-IMATRIX for what is neither, E-GGUF-* for an unsound GGUF."""
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    try:
        return _from_gguf(path) if is_gguf else _Legacy(path).read()
    except RefusedInput as error:  # the file of a parameter has no name of its own
        raise RefusedInput(error.code, f"'imatrix': {error.what}", facts=error.facts, hint=_FORMS) from error


def _from_gguf(path: Path) -> Imatrix:
    gguf = read_gguf(path)
    halves: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for info in gguf.tensors:
        name, _, part = info.name.rpartition(".")
        if part in {"in_sum2", "counts"}:
            if info.type != "F32":
                raise _refused(path, f"{info.name!r} is not F32")
            halves.setdefault(name, {})[part] = gguf.dequantized(info).reshape(-1)
    keys = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    lacking = [key for key in keys if key not in gguf.metadata]
    if not halves or lacking:
        raise _refused(path, f"it lacks {lacking[0]}" if lacking else "it has no entry")
    entries = {}
    for name, half in sorted(halves.items()):
        if half.keys() != {"in_sum2", "counts"} or len(half["in_sum2"]) % len(half["counts"]):
            raise _refused(path, f"the sums and counts of {name!r} do not fit each other")
        # counts are whole numbers that were written as floats
        entries[name] = Entry(half["in_sum2"], np.rint(half["counts"]).astype(np.float32))
    return Imatrix(entries, _number(path, gguf.metadata, keys[1]), _number(path, gguf.metadata, keys[2]))


def _number(path: Path, metadata: Mapping[str, Any], key: str) -> int:
    value = metadata[key]
    if type(value) is not int or value < 0:
        raise _refused(path, f"{key} is {value!r}")
    return value


class _Legacy:
    """A reader of the older form that takes no number on trust."""

    def __init__(self, path: Path) -> None:
        self._path, self._data, self._at = path, path.read_bytes(), 0

    def read(self) -> Imatrix:
        entries = {}
        for _ in range(self._count("entries", _MAX_ENTRIES)):
            name = self._text()
            calls = self._number()
            sums = np.frombuffer(self._take(4 * self._count("values", _MAX_VALUES)), "<f4").astype(np.float32)
            if name in entries:
                raise _refused(self._path, f"{name!r} is there twice")
            # without calls the values count as they are
            entries[name] = Entry(sums, np.array([calls if calls > 0 else 1], np.float32))
        if self._at == len(self._data):
            return Imatrix(entries, 0, 0)
        chunks = self._number()
        if self._at < len(self._data):
            self._text()
        if self._at != len(self._data):
            raise _refused(self._path, "bytes are left at its end")
        return Imatrix(entries, max(0, chunks), 0)

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _refused(self._path, f"{size} bytes at {self._at} pass its end")
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self) -> int:
        return int(struct.unpack("<i", self._take(4))[0])

    def _count(self, what: str, most: int) -> int:
        number = self._number()
        if not 1 <= number <= most:
            raise _refused(self._path, f"it claims {number} {what}")
        return number

    def _text(self) -> str:
        length = self._number()
        if not 0 <= length <= _MAX_NAME:
            raise _refused(self._path, f"a name of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise _refused(self._path, "a name is not UTF-8") from error


def write_imatrix(path: Path, matrix: Imatrix, datasets: tuple[str, ...]) -> None:
    """Write the GGUF form, entries in the order of their names; ``datasets`` says what it was computed on."""
    fields = [
        text("general.type", "imatrix"),
        texts("imatrix.datasets", datasets),
        u32("imatrix.chunk_count", matrix.chunks),
        u32("imatrix.chunk_size", matrix.chunk_size),
    ]
    infos, views = [], []
    for name, entry in sorted(matrix.entries.items()):
        experts = len(entry.counts)
        infos += [
            TensorInfo(f"{name}.in_sum2", (experts, len(entry.sums) // experts), "F32"),
            TensorInfo(f"{name}.counts", (experts, 1), "F32"),
        ]
        views += [memoryview(values.astype("<f4").tobytes()) for values in (entry.sums, entry.counts)]
    write_gguf(path, fields, infos, iter(views))


def _refused(path: Path, what: str) -> RefusedInput:
    return RefusedInput("E-IMATRIX", f"{path.name} is no importance matrix: {what}")
