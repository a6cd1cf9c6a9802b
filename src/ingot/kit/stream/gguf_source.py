"""A source over the bytes of a GGUF, and the transform that makes weights of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit.gguf.reader import Gguf, TensorInfo
from ingot.kit.stream.file_source import FileSource
from ingot.kit.stream.verified import Buffers, VerifiedFile, expectation
from ingot.kit.stream.vocabulary import Block, MapRows, Route, Slot


class GgufSource(FileSource):
    """The tensors of a GGUF as they lie in it: rows of bytes (U8), under their own names, in the order of the file.

    The file was checked by ``read_gguf``; it is read once, and compared with ``expected`` in that read. A tensor of
    one dimension is one row.
    """

    def __init__(self, gguf: Gguf, expected: Mapping[str, FileRecord] | None = None) -> None:
        self._gguf = gguf
        self._expected = expectation(gguf.path, expected)
        self._infos = sorted(gguf.tensors, key=lambda info: info.begin)
        super().__init__([Slot(info.name, _raw_shape(info), "U8") for info in self._infos])

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``."""
        with VerifiedFile(self._gguf.path, self._expected, Buffers()) as file:
            for index, info in enumerate(self._infos):
                file.skip(info.begin - file.at)
                yield from self._cut(file, index, rows[index])
            file.finish()


def _raw_shape(info: TensorInfo) -> tuple[int, int]:
    rows = info.shape[0] if len(info.shape) > 1 else 1
    return rows, info.size // rows


@dataclass(frozen=True)
class Dequantize:
    """Makes float32 weights, in their shape, of a ``GgufSource``'s bytes. RefusedInput: E-GGUF-TYPE."""

    gguf: Gguf

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        info = next(info for info in self.gguf.tensors if info.name == slot.name)
        # A tensor of one dimension becomes as many rows as it has weights.
        whole = len(info.shape) == 1
        plain = Slot(slot.name, info.shape, "F32")
        return [Route(plain, self._decode(info), whole=whole, identity=f"ggml {info.type}")]

    def finish(self) -> None:
        """See ``Transform``."""

    def _decode(self, info: TensorInfo) -> MapRows:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[info.type]
        width = info.shape[-1]

        def decode(rows: torch.Tensor, _start: int) -> torch.Tensor:
            raw = rows.numpy().reshape(-1, info.size // (info.elements // width))
            try:
                weights = dequantize(raw, kind)
            except NotImplementedError as error:
                raise RefusedInput(
                    "E-GGUF-TYPE", f"{self.gguf.path.name}: tensor {info.name!r} has type {info.type}"
                ) from error
            # What is F32 already comes back as a view of other memory's bytes.
            plain = np.ascontiguousarray(weights, np.float32)
            return torch.from_numpy(plain).view(-1, *info.shape[1:])

        return decode
