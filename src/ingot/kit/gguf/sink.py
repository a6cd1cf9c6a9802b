"""A sink that writes GGUF: types and offsets are known before the first byte, blocks are quantized on many threads.

The bytes are written once and hashed as they are written: the files (SHA-256, xxh3-128) and the data of each
tensor (xxh3-128). How the rows come in blocks changes nothing: a row is quantized without a look at its neighbours.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.mixture import Choice
from ingot.kit.gguf.parts import Part
from ingot.kit.gguf.reuse import Changed, Makings
from ingot.kit.gguf.types import PLAIN
from ingot.kit.gguf.writer import Field, TensorInfo, i32, u16
from ingot.kit.stream.verified import TensorHash
from ingot.kit.stream.vocabulary import Block, Slot


@dataclass(frozen=True)
class Content:
    """What a file is to say. ``choose`` gives each slot its type; ``fields`` the metadata, told the parameter count.

    ``extra`` are tensors that no source holds; they come first, in F32. ``imatrix`` holds, by tensor, a weight for each
    column. ``late`` is the key of a digest that is only known when all was read (64 hex digits). ``makings`` says which
    quantized tensors are copied from earlier files, and keeps what the others cost.
    """

    choose: Callable[[Sequence[Slot]], Mapping[str, Choice]]
    fields: Callable[[Sequence[Slot]], Sequence[Field]]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    imatrix: Mapping[str, torch.Tensor] = field(default_factory=dict)
    split_bytes: int | None = None
    check: bool = True
    late: bool = False
    makings: Makings | None = None


class GgufSink:
    """Writes ``path``, or with ``split_bytes`` the parts ``STEM-00001-of-0000N.gguf`` beside it.

    Parts are cut as llama-gguf-split cuts them (tools/gguf-split of llama.cpp): a part ends before the tensor that
    would take its data over the limit; all metadata is in the first. ``records`` holds the files after ``close``.
    """

    def __init__(self, path: Path, content: Content) -> None:
        """Write nothing yet."""
        self.path, self.content = path, content
        self.choices: Mapping[str, Choice] = {}
        self._slots: Sequence[Slot] = ()
        self._parts: list[Part] = []
        self._places: dict[int, Part] = {}
        self._infos: list[TensorInfo] = []
        self._tensor_hash = TensorHash()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def begin(self, slots: Sequence[Slot]) -> None:
        """Choose types, lay out the files, write their headers and the tensors that no source holds."""
        content = self.content
        self._slots = slots
        self.choices = content.choose(slots)
        self._infos = [TensorInfo(name, tuple(tensor.shape), "F32") for name, tensor in content.extra.items()]
        self._infos += [TensorInfo(slot.name, slot.shape, self.choices[slot.name].type) for slot in slots]
        self._check_imatrix(slots)
        self._look_for_equals()
        for kind in sorted({choice.type for choice in self.choices.values()} - PLAIN):
            ggml().prepare(kind)
        self._parts = self._lay_out(content.fields(slots))
        numbers = iter(range(len(self._infos)))
        self._places = {next(numbers): part for part in self._parts for _ in part.infos}
        self._thread = ThreadPoolExecutor(1, "ingot-hash")
        for part in self._parts:
            part.open(late=content.late and part is self._parts[0])
        for number, tensor in enumerate(content.extra.values()):
            self._take(number, tensor.float().contiguous().flatten().view(torch.uint8), last=True)

    def _check_imatrix(self, slots: Sequence[Slot]) -> None:
        """As llama.cpp: a tensor without an entry is quantized without, unless its type needs one."""
        for slot in slots:
            weights, choice = self.content.imatrix.get(slot.name), self.choices[slot.name]
            if weights is not None and len(weights) != slot.shape[-1] and slot.name != "token_embd.weight":
                raise RefusedInput(
                    "E-GGUF-IMATRIX",
                    f"the importance matrix is of another model: {slot.name!r} has {slot.shape[-1]} columns",
                    facts=[f"the matrix has {len(weights)}"],
                )
            if choice.needs_imatrix and weights is None:
                raise RefusedInput(
                    "E-GGUF-IMATRIX",
                    f"the importance matrix has no entry for {slot.name!r}, which {choice.type} needs",
                    facts=[f"entries: {len(self.content.imatrix)}"],
                )

    def _look_for_equals(self) -> None:
        for index, slot in enumerate(self._slots):
            info = self._info(index)
            # others are as quickly made as they are read
            if self.content.makings is not None and info.type not in PLAIN:
                self.content.makings.choose(index, slot, info.type, self._columns(slot), info.nbytes)

    def _info(self, index: int) -> TensorInfo:
        return self._infos[index + len(self.content.extra)]

    def _columns(self, slot: Slot) -> torch.Tensor | None:
        """The importance of each column; None where there is none that fits."""
        weights = self.content.imatrix.get(slot.name)
        return weights if weights is not None and len(weights) == slot.shape[-1] else None

    def _lay_out(self, fields: Sequence[Field]) -> list[Part]:
        limit, infos = self.content.split_bytes, self._infos
        if limit is None:
            return [Part(self.path, fields, infos, first=0)]
        starts, size = [0], 0
        for number, info in enumerate(infos):
            size += info.nbytes + info.padding
            if size > limit and number > starts[-1]:
                starts.append(number)
                size = info.nbytes + info.padding
        parts, count = [], len(starts)
        for number, (start, end) in enumerate(itertools.pairwise([*starts, len(infos)])):
            path = self.path.with_name(f"{self.path.stem}-{number + 1:05d}-of-{count:05d}.gguf")
            # only the first part holds the metadata, and all hold these three
            split = [u16("split.no", number), u16("split.count", count), i32("split.tensors.count", len(infos))]
            parts.append(Part(path, [*(() if number else fields), *split], infos[start:end], first=start))
        return parts

    def grain(self, _slot: Slot) -> int:
        """Rows are independent of one another."""
        return 1

    def encode(self, block: Block) -> tuple[torch.Tensor, int]:
        """The bytes of these rows in their tensor's type, and the nanoseconds that they took."""
        makings = self.content.makings
        if makings is None or makings.kept(block.index) is None:
            start = time.thread_time_ns()
            return self._encoded(block), time.thread_time_ns() - start
        row = self._info(block.index).nbytes // self._slots[block.index].rows
        # waiting for the disk counts here
        start = time.perf_counter_ns()
        piece = makings.read(block.index, block.start * row, block.rows.shape[0] * row)
        return piece, time.perf_counter_ns() - start

    def _encoded(self, block: Block) -> torch.Tensor:
        slot = self._slots[block.index]
        kind = self.choices[slot.name].type
        if kind == slot.dtype:
            return block.rows.contiguous().view(torch.uint8).flatten()
        if kind == "F32":
            return block.rows.float().contiguous().view(torch.uint8).flatten()
        try:
            return ggml().encode(block.rows, kind, self._columns(slot), check=self.content.check or kind not in PLAIN)
        except RefusedInput as error:
            raise RefusedInput(error.code, error.what, facts=[f"tensor {slot.name!r}"]) from error

    def write(self, block: Block, encoded: tuple[torch.Tensor, int]) -> None:
        """Write the bytes at their place, while another thread hashes those before.

        Changed where a tensor that was copied is not the one that was looked for.
        """
        slot, (piece, nanoseconds) = self._slots[block.index], encoded
        if self.content.makings is not None:
            self.content.makings.spend(block.index, nanoseconds)
        last = block.start + block.rows.shape[0] >= slot.rows
        self._take(block.index + len(self.content.extra), piece, last=last)

    def _take(self, number: int, encoded: torch.Tensor, *, last: bool) -> None:
        self._wait()
        assert self._thread is not None
        part, info = self._places[number], self._infos[number]
        piece = memoryview(encoded.numpy())
        part.put(number, piece)
        padding = bytes(info.padding) if last else b""
        part.put(number, padding)
        self._pending = self._thread.submit(self._hash, number, piece, padding if last else None)

    def _hash(self, number: int, piece: memoryview, padding: bytes | None) -> None:
        part = self._places[number]
        name = self._infos[number].name
        self._tensor_hash.update(name, piece, last=padding is not None)
        index, makings = number - len(self.content.extra), self.content.makings
        kept = makings.kept(index) if makings is not None and padding is not None else None
        if kept is not None and kept.digest != self._tensor_hash.digests[name]:
            raise Changed(f"{name} is not in {kept.path.name} any more")
        part.hash(number, piece)
        part.hash(number, padding or b"")

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """The files are whole. ValueError when a tensor is not."""
        self._wait()
        assert self._thread is not None
        self._thread.shutdown()
        for part in self._parts:
            part.close()

    def abort(self) -> None:
        """End the hashing thread and let go of the files: what was written is of no use."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        for part in self._parts:
            part.abort()

    @property
    def tensors(self) -> Mapping[str, str]:
        """The xxh3-128 of each tensor's data, by name."""
        return self._tensor_hash.digests

    @property
    def places(self) -> Mapping[int, tuple[str, str, int]]:
        """Of the tensor of each slot: its name, its file, and its first byte there."""
        first = len(self.content.extra)
        return {
            number - first: (self._infos[number].name, part.path.name, part.begin(number))
            for number, part in self._places.items()
            if number >= first
        }

    @property
    def parameters(self) -> int:
        """The weights of the tensors that came."""
        return sum(slot.elements for slot in self._slots)

    @property
    def bytes_written(self) -> int:
        """The bytes of all files."""
        return sum(part.size for part in self._parts)

    def paths(self) -> tuple[Path, ...]:
        """The files, the first part first."""
        return tuple(part.path for part in self._parts)

    def complete(self, late: Sequence[Field]) -> None:
        """Have fields of the header say what is known now: by their keys, each of equal size."""
        self._parts[0].complete(late)

    def records(self) -> tuple[FileRecord, ...]:
        """The files as they were hashed.

        A file whose header was not complete, or says otherwise than was known when it was begun, is hashed now, in one
        more read of what was just written.
        """
        return tuple(part.record() for part in self._parts)
