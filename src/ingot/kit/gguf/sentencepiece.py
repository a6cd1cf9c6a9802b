"""SentencePiece model files (tokenizer.model) read and written without the library.

The file is a protobuf ``ModelProto``: repeated field 1 is a piece (1 text, 2 float score, 3 type), field 2 the
trainer's settings (3 kind of model, 4 size, 35 byte fallback, 40 to 43 the ids of unknown, begin, end and padding,
45 the text of the unknown piece), field 3 the normalizer's (1 name, 3 adds a space in front, 4 drops repeated spaces)
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ingot.errors import RefusedInput

#: The types of pieces, numbered alike in SentencePiece and in GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BPE = 2
#: A piece: text, score, type.
Piece = tuple[str, float, int]


@dataclass(frozen=True)
class Settings:
    """What a model file says besides its pieces; an id that is None is one that the model does not have."""

    add_space: bool
    unk: int
    bos: int | None
    eos: int | None
    pad: int | None


def read_sentencepiece(data: bytes) -> Iterator[Piece]:
    """The pieces of a model. RefusedInput (E-GGUF-TOKENIZER) when the bytes are none."""
    try:
        for number, value in _protobuf(data):
            if number == 1:
                assert isinstance(value, bytes)
                parts = dict(_protobuf(value))
                score = struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0
                yield parts.get(1, b"").decode("utf-8"), float(score), int(parts.get(3, NORMAL))
    except (IndexError, ValueError, struct.error, AssertionError, AttributeError) as error:
        raise RefusedInput("E-GGUF-TOKENIZER", "tokenizer.model is not a SentencePiece model") from error


def write_sentencepiece(pieces: Iterable[Piece], settings: Settings) -> bytes:
    """The bytes of a model that merges pairs of pieces by score, with bytes where it has all 256 as pieces."""
    rows = list(pieces)
    parts = [_message(1, _message(1, text.encode()) + _f32(2, score) + _number(3, kind)) for text, score, kind in rows]
    trainer = _number(3, _BPE) + _number(4, len(rows))
    trainer += _number(35, int(sum(kind == BYTE for *_, kind in rows) == 256))
    for number, index in ((40, settings.unk), (41, settings.bos), (42, settings.eos), (43, settings.pad)):
        trainer += _number(number, -1 if index is None else index)
    trainer += _message(45, rows[settings.unk][0].encode())
    normalizer = _message(1, b"identity") + _number(3, int(settings.add_space)) + _number(4, 0)
    return b"".join(parts) + _message(2, trainer) + _message(3, normalizer)


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _read_varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("a field passes the end")
        yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    # a negative number counts as its two's complement in 64 bits
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _f32(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
