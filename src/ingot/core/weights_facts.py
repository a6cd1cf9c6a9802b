"""Facts of an artifact that follow from its bytes: sizes, tensors, elements, types, zeros. Standard library only.

``audit`` derives recorded metrics again with these, on a machine that has no torch and no numpy. Readers of headers:
safetensors (8 bytes little-endian length, JSON) and GGUF 2 and 3 (the layout in ggml's ``docs/gguf.md``). Lengths
are checked before they are used: a damaged file ends in ValueError, never in a long wait.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ingot.core.digest import read_json, walk_files

_MAX_HEADER = 100 << 20
_CHUNK = 1 << 20
#: Bytes of one element.
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
#: ggml's types by number (``enum ggml_type``).
_GGML = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
#: Sizes of GGUF's scalar metadata types by number; 8 is a string, 9 an array.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Tensor:
    """One tensor: its element type, number of elements, and where its bytes lie (None in a GGUF)."""

    name: str
    type: str
    elements: int
    place: tuple[Path, int, int] | None = None


@dataclass(frozen=True)
class WeightFacts:
    """What an artifact holds. ``tensors`` is empty where it has neither safetensors nor one GGUF."""

    total_bytes: int
    file_count: int
    weight_bytes: int
    tensors: tuple[Tensor, ...] = field(default=())

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int | None:
        """Bytes of the tensors without headers; None for a GGUF."""
        places = [tensor.place for tensor in self.tensors]
        return sum(place[2] for place in places if place) if places and all(places) else None

    def types(self) -> Mapping[str, int]:
        """How many tensors there are of each type."""
        return Counter(tensor.type for tensor in self.tensors)


def facts_of(folder: Path) -> WeightFacts:
    """The facts of an artifact's folder; reads headers only. ValueError when a header is malformed, OSError."""
    sizes = {name: os.lstat(folder / name).st_size for name in walk_files(folder)}
    tensors: list[Tensor] = []
    weights = [name for name in sizes if name.endswith((".safetensors", ".gguf"))]
    for name in weights:
        read = read_safetensors if name.endswith(".safetensors") else read_gguf
        tensors += read(folder / name)
    return WeightFacts(sum(sizes.values()), len(sizes), sum(sizes[name] for name in weights), tuple(tensors))


def read_safetensors(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file, from its header."""
    header, length = _safetensors_header(path)
    for name, item in header.items():
        if name != "__metadata__":
            yield _safetensor(path, name, item, 8 + length)


def safetensors_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The metadata of a safetensors file, and the names of its tensors under their own."""
    for name, item in _safetensors_header(path)[0].items():
        yield name, name
        if name == "__metadata__" and isinstance(item, dict):
            yield from ((f"__metadata__.{key}", str(value)) for key, value in item.items())


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"{path.name}: a header of {length} bytes in a file of {size}")
        try:
            header = read_json(file.read(length))
        except RecursionError as error:
            raise ValueError(f"{path.name}: the header is nested too deep") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path.name}: the header is no JSON object")
    return header, length


def _safetensor(path: Path, name: str, item: Any, base: int) -> Tensor:
    try:
        begin, end = item["data_offsets"]
        width, elements = _WIDTHS[item["dtype"]], 1
        for dimension in item["shape"]:
            elements *= int(dimension)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name}: tensor {name!r} is malformed") from error
    if end - begin != elements * width:
        raise ValueError(f"{path.name}: tensor {name!r} has {end - begin} bytes for {elements} elements")
    return Tensor(name, item["dtype"], elements, (path, base + begin, end - begin))


class _Reader:
    """Reads little-endian values and refuses to go past the end of the file."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.file, self.name, self.left = file, name, size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"{self.name}: a length of {count} goes past the end")
        self.left -= count
        return self.file.read(count)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(form)))
        return int(value)

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> str | None:
        """A value that is a text; None for any other, which is passed over."""
        if kind == 8:
            return self.text()
        self.skip_value(kind)
        return None

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind == 8:
            self.take(self.number("Q"))
        elif kind == 9 and depth == 0:
            item, count = self.number("I"), self.number("Q")
            if item in _SCALARS:
                self.take(_SCALARS[item] * count)
                return
            # A string takes eight bytes at least, which bounds the loop by the file's size.
            if count * 8 > self.left:
                raise ValueError(f"{self.name}: an array of {count} goes past the end")
            for _ in range(count):
                self.skip_value(item, depth + 1)
        elif kind in _SCALARS:
            self.take(_SCALARS[kind])
        else:
            raise ValueError(f"{self.name}: metadata of unknown type {kind}")


def read_gguf(path: Path) -> Iterator[Tensor]:
    """The tensors of a GGUF file, from its header."""
    with path.open("rb") as file:
        reader, tensors, values = _open_gguf(file, path)
        for _ in range(values):
            reader.text()
            reader.skip_value(reader.number("I"))
        for _ in range(tensors):
            yield _gguf_tensor(reader)


def gguf_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The metadata of a GGUF file that is text, without its lists of tokens."""
    with path.open("rb") as file:
        reader, _tensors, values = _open_gguf(file, path)
        for _ in range(values):
            key = reader.text()
            value = reader.value(reader.number("I"))
            if value is not None:
                yield key, value


def _open_gguf(file: BinaryIO, path: Path) -> tuple[_Reader, int, int]:
    """A reader behind the head of a GGUF, and its numbers of tensors and of metadata values."""
    reader = _Reader(file, path.name, path.stat().st_size)
    if reader.take(4) != b"GGUF" or reader.number("I") not in (2, 3):
        raise ValueError(f"{path.name}: not a GGUF of version 2 or 3")
    return reader, reader.number("Q"), reader.number("Q")


def _gguf_tensor(reader: _Reader) -> Tensor:
    name, dimensions, elements = reader.text(), reader.number("I"), 1
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{reader.name}: tensor {name!r} has {dimensions} dimensions")
    for _ in range(dimensions):
        elements *= reader.number("Q")
    kind = reader.number("I")
    reader.number("Q")  # the offset of its data
    return Tensor(name, _GGML.get(kind, f"type {kind}"), elements)


def zeros(tensor: Tensor) -> int:
    """Elements that are 0 or −0 in an F32, F16 or BF16 tensor of a safetensors file; ValueError for others."""
    return sum(words.count(0) for words in _words(tensor, 1))


def crowded(tensor: Tensor, keep: int, block: int) -> int:
    """Blocks of ``block`` consecutive elements of which more than ``keep`` are not zero; ValueError as ``zeros``.

    The flags of all first elements of a block are added to those of all second ones, and so on: bytes never overflow.
    """
    if not 0 < keep < block <= 64 or tensor.elements % block:
        raise ValueError(f"{tensor.name!r} of {tensor.elements} elements cannot hold {keep}:{block}")
    return sum(_crowded_blocks(words.translate(_NOT_ZERO), keep, block) for words in _words(tensor, block))


def _crowded_blocks(flags: bytes, keep: int, block: int) -> int:
    sums = sum(int.from_bytes(flags[place::block], "little") for place in range(block))
    return sum(sums.to_bytes(len(flags) // block, "little").count(many) for many in range(keep + 1, block + 1))


def _words(tensor: Tensor, block: int) -> Iterator[bytes]:
    """One byte an element, 0 where it is zero, in pieces of whole blocks."""
    if tensor.place is None or tensor.type not in ("F32", "F16", "BF16"):
        raise ValueError(f"zeros of {tensor.name!r} ({tensor.type}) cannot be counted")
    path, begin, length = tensor.place
    width = _WIDTHS[tensor.type]
    piece = max(1, _CHUNK // (width * block)) * width * block
    with path.open("rb") as file:
        file.seek(begin)
        while length:
            data = file.read(min(piece, length))
            if len(data) < min(piece, length):
                raise ValueError(f"{path.name}: ends inside {tensor.name!r}")
            length -= len(data)
            yield _merged(data, width)


#: Maps the byte that holds the sign to what is left of it without the sign.
_NO_SIGN = bytes(byte & 0x7F for byte in range(256))


#: Maps every byte but 0 to 1.
_NOT_ZERO = bytes(min(byte, 1) for byte in range(256))


def _merged(data: bytes, width: int) -> bytes:
    """A byte for each word of ``width`` bytes, 0 if it is zero but for the sign: planes are OR-ed as integers."""
    planes = [data[index::width] for index in range(width)]
    planes[-1] = planes[-1].translate(_NO_SIGN)
    merged = 0
    for plane in planes:
        merged |= int.from_bytes(plane, "little")
    return merged.to_bytes(len(planes[0]), "little")
