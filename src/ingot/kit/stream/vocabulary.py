"""The words that streaming stages share: slots, blocks, routes; sources, transforms, sinks.

What flows is known before anything is read: a source lists its *slots* (tensors to come), every transform says which
slots a slot becomes (its *routes*), so a sink knows each name, shape and dtype, and with them every offset of its file,
before the first byte. Then the blocks come, are mapped on several threads, and are written in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from ingot.core.digest import FileRecord
from ingot.core.stage import Done

#: Bytes of an element, by the name that safetensors gives the dtype.
ELEMENT_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

#: The torch dtype of each.
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip

#: The name of each torch dtype.
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """A tensor to come: its name, its shape (outermost first), its dtype as safetensors names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        """How many rows its blocks are cut from: the outermost dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return self.elements * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True)
class Block:
    """Rows ``[start, start + len)`` of the tensor in slot ``index`` of whoever gives it."""

    index: int
    start: int
    rows: torch.Tensor


#: Maps a block's rows; told the number of the first row. Called on several threads at once, for any block in any order.
MapRows = Callable[[torch.Tensor, int], torch.Tensor]


def unchanged(rows: torch.Tensor, _start: int) -> torch.Tensor:
    """The map of a tensor that passes as it is."""
    return rows


@dataclass(frozen=True)
class Route:
    """One tensor that a tensor becomes.

    ``grain``: blocks start at, and hold, multiples of so many rows (but for the last). ``whole``: the map must see all
    rows in one block, as a threshold over the tensor needs. A map may give another number of rows only if ``whole``.
    A map that is not ``whole`` always sees the same rows at once, those of a *tile*, whose height follows from the
    slot's shape and ``grain`` alone: whatever else is in the chain, a matrix product gives the same bits, and what is
    added up tile by tile gives the same sum (if the tiles are added in order, or by ``math.fsum``).
    With ``once`` the tensor does not depend on the rows: the map is asked with the first block alone, and gives all.
    ``identity`` says what the map does, where that is told by content alone: equal identities on equal bytes give equal
    bytes (``""``: the bytes pass unchanged; None: not known, so nothing made from it is ever reused).
    """

    slot: Slot
    apply: MapRows = unchanged
    grain: int = 1
    whole: bool = False
    identity: str | None = None
    once: bool = False


class Transform(Protocol):
    """Maps tensors. One object serves one run: it may count what passes, and ``finish`` gives its verdict.

    ``begin`` and ``routes`` may be asked more than once before the first block, with the same answers.
    """

    def routes(self, slot: Slot) -> Sequence[Route]:
        """What the tensor becomes: nothing, one tensor, or several. RefusedInput for one that does not fit."""

    def begin(self, slots: Sequence[Slot]) -> None:
        """Told all slots that will come, before ``routes`` is asked. RefusedInput where they do not fit."""

    def finish(self) -> None:
        """After the last block. RefusedInput or StageFailed for what shows only at the end."""


class Source(Protocol):
    """Gives tensors block by block, in the order of its bytes."""

    @property
    def slots(self) -> Sequence[Slot]:
        """What will come, in that order."""

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """Every block, slot by slot, the one at ``i`` in blocks of ``rows[i]`` rows (at least 1).

        A tensor without rows comes as one block of none. The memory of a block lives as long as a tensor that views
        it. After the last block the source has seen all its bytes and compares them with what they must be:
        StoreDamaged (E-OBJECT-DAMAGED), before anything is published.
        """


class Sink(Protocol):
    """Takes tensors block by block: each tensor's in order of rows, in the order of slots but for tensors that were
    made from one, whose blocks alternate. A sink that has a method ``abort()`` is told when anything failed.
    """

    def begin(self, slots: Sequence[Slot]) -> None:
        """Told all slots that will come, in order, before the first block."""

    def grain(self, slot: Slot) -> int:
        """Blocks of this slot start at multiples of so many rows."""

    def encode(self, block: Block) -> Any:
        """What ``write`` gets; called on several threads at once (quantizing happens here)."""

    def write(self, block: Block, encoded: Any) -> None:
        """Take one block; called in order, by one thread."""

    def close(self) -> None:
        """After the last block: what was written is whole. Not called when anything failed."""


@dataclass(frozen=True)
class Tap:
    """A sink in the middle of a chain: it sees the tensors as they are there, and they flow on."""

    sink: Sink


class Counted(Protocol):
    """What a sink counted of a model that has flowed into it."""

    @property
    def files(self) -> Sequence[FileRecord]:
        """The weight files, written or not."""

    @property
    def tensors(self) -> Mapping[str, str]:
        """The xxh3-128 of each tensor's bytes, by name."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""

    @property
    def zeros(self) -> int:
        """How many of them are zero."""

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the safetensors files, headers included."""


#: Told what was counted at the end; gives the stage's metrics and notes, and may write further side files.
Measure = Callable[[Counted], Done]


def nothing_measured(_counted: Counted) -> Done:
    """Of a model that flows from a folder as it is."""
    return Done({})


@dataclass
class Weights:
    """A model that flows: where its tensors come from, what is done to them, and the folder of all else.

    ``folder`` holds config.json, tokenizer and chat template, whether or not the weights were ever written: of a flow
    these side files and nothing else. ``shard_bytes`` is the most data in one safetensors file, written or not.
    ``measure`` is what the flow's stage has to report of its result. ``passed`` gives, once all has flowed, what was
    measured of the virtual inputs on the way, by role. ``origin`` is the digest of the object that the source
    reads, as far as it is known, and ``known`` what was said of its tensors (xxh3-128 by name): not compared with
    anything.
    """

    source: Source
    folder: Path
    chain: list[Transform | Tap] = field(default_factory=list)
    shard_bytes: int = 5_000_000_000
    measure: Measure = nothing_measured
    passed: dict[str, Callable[[], Done]] = field(default_factory=dict)
    origin: str = ""
    known: Mapping[str, str] = field(default_factory=dict)
