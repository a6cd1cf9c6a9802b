"""A sink that writes GGUF: types and offsets are known before the first byte, blocks are quantized on many threads.

The bytes are written once, in order, and hashed as they are written: the files (SHA-256, xxh3-128) and the data of each
tensor (xxh3-128). How the rows come in blocks changes nothing: a row is quantized without a look at its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.mixture import Choice
from ingot.kit.gguf.parts import OpenPart, Part
from ingot.kit.gguf.types import PLAIN
from ingot.kit.gguf.writer import Field, TensorInfo, i32, u16
from ingot.kit.stream.vocabulary import Block, Slot


@dataclass(frozen=True)
class Content:
    """What a file is to say. ``choose`` gives each slot its type; ``fields`` the metadata, told the parameter count.

    ``extra`` are tensors that no source holds; they come first, in F32. ``imatrix`` holds, by tensor, a weight for each
    column. ``late`` is the key of a digest that is only known when all was read (64 hex digits).
    """

    choose: Callable[[Sequence[Slot]], Mapping[str, Choice]]
    fields: Callable[[Sequence[Slot]], Sequence[Field]]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    imatrix: Mapping[str, torch.Tensor] = field(default_factory=dict)
    split_bytes: int | None = None
    check: bool = True
    late: bool = False


class GgufSink:
    """Writes ``path``, or with ``split_bytes`` the parts ``STEM-00001-of-0000N.gguf`` beside it.

    Parts are cut as llama-gguf-split cuts them (tools/gguf-split of llama.cpp): a part ends before the tensor that
    would take its data over the limit; all metadata is in the first. ``records`` holds the files after ``close``.
    """

    def __init__(self, path: Path, content: Content) -> None:
        """Write nothing yet."""
        self.path, self.content = path, content
        self.choices: Mapping[str, Choice] = {}
        self.parameters = 0
        self.tensors: dict[str, str] = {}
        self._slots: Sequence[Slot] = ()
        self._parts: list[Part] = []
        self._places: dict[str, Part] = {}
        self._open: OpenPart | None = None

    def begin(self, slots: Sequence[Slot]) -> None:
        """Choose types, lay out the files, write the first header and the tensors that no source holds."""
        content = self.content
        self._slots = slots
        self.choices = content.choose(slots)
        self.parameters = sum(slot.elements for slot in slots)
        infos = [TensorInfo(name, tuple(tensor.shape), "F32") for name, tensor in content.extra.items()]
        infos += [TensorInfo(slot.name, slot.shape, self.choices[slot.name].type) for slot in slots]
        self._check_imatrix(slots)
        for kind in sorted({choice.type for choice in self.choices.values()} - PLAIN):
            ggml().prepare(kind)
        self._parts = self._lay_out(content.fields(slots), infos)
        self._places = {info.name: part for part in self._parts for info in part.infos}
        for name, tensor in content.extra.items():
            self._take(name, tensor.contiguous().view(torch.uint8))

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

    def _lay_out(self, fields: Sequence[Field], infos: Sequence[TensorInfo]) -> list[Part]:
        limit = self.content.split_bytes
        if limit is None:
            return [Part(self.path, fields, tuple(infos))]
        groups, size = [[infos[0]]], infos[0].nbytes + infos[0].padding
        for info in infos[1:]:
            size += info.nbytes + info.padding
            if size > limit:
                groups.append([])
                size = info.nbytes + info.padding
            groups[-1].append(info)
        parts = []
        for number, group in enumerate(groups):
            path = self.path.with_name(f"{self.path.stem}-{number + 1:05d}-of-{len(groups):05d}.gguf")
            # only the first part holds the metadata, and all hold these three
            split = [u16("split.no", number), u16("split.count", len(groups)), i32("split.tensors.count", len(infos))]
            parts.append(Part(path, [*(fields if number == 0 else ()), *split], tuple(group)))
        return parts

    def grain(self, _slot: Slot) -> int:
        """Rows are independent of one another."""
        return 1

    def encode(self, block: Block) -> torch.Tensor:
        """The bytes of these rows in their tensor's type."""
        slot = self._slots[block.index]
        kind = self.choices[slot.name].type
        if kind == slot.dtype:
            return block.rows.contiguous().view(torch.uint8).flatten()
        if kind == "F32":
            return block.rows.float().contiguous().view(torch.uint8).flatten()
        weights = self.content.imatrix.get(slot.name)
        if weights is not None and len(weights) != slot.shape[-1]:
            weights = None
        try:
            return ggml().encode(block.rows, kind, weights, check=self.content.check or kind not in PLAIN)
        except RefusedInput as error:
            raise RefusedInput(error.code, error.what, facts=[f"tensor {slot.name!r}"]) from error

    def write(self, block: Block, encoded: torch.Tensor) -> None:
        """Append the bytes; the first block of a tensor ends the one before it."""
        self._take(self._slots[block.index].name, encoded)

    def _take(self, name: str, encoded: torch.Tensor) -> None:
        part = self._places[name]
        if self._open is None or self._open.part is not part:
            self._leave()
            self._open = OpenPart(part, unhashed=self.content.late and part is self._parts[0])
        self._open.write(name, memoryview(encoded.numpy()).cast("B"))

    def _leave(self) -> None:
        if self._open is not None:
            self.tensors |= self._open.close()
            self._open = None

    def close(self) -> None:
        """ValueError when a tensor is not whole."""
        self._leave()
        missing = self._places.keys() - self.tensors.keys()
        if missing:
            raise ValueError(f"{len(missing)} tensors were never written, one is {min(missing)!r}")

    def abort(self) -> None:
        """Let go of the file that is being written: what was written is of no use."""
        if self._open is not None:
            self._open.file.close()
            self._open = None

    @property
    def bytes_written(self) -> int:
        """The bytes of all files."""
        return sum(part.size for part in self._parts)

    def paths(self) -> tuple[Path, ...]:
        """The files, the first part first."""
        return tuple(part.path for part in self._parts)

    def records(self, late: Sequence[Field] = ()) -> tuple[FileRecord, ...]:
        """The files as they were hashed. ``late`` replaces fields of the header of equal size, by their keys.

        A file whose header was not complete is hashed now, in one more read of what was just written.
        """
        if self.content.late:
            self._parts[0].complete(late)
        return tuple(part.record() for part in self._parts)


class SeveralSinks:
    """Writes the same tensors to several sinks: one read, one arithmetic before, as many files."""

    def __init__(self, sinks: Sequence[GgufSink]) -> None:
        self.sinks = tuple(sinks)

    def begin(self, slots: Sequence[Slot]) -> None:
        """Told to each."""
        for sink in self.sinks:
            sink.begin(slots)

    def grain(self, _slot: Slot) -> int:
        """Rows are independent of one another."""
        return 1

    def encode(self, block: Block) -> tuple[torch.Tensor, ...]:
        """The bytes for each, in their order."""
        return tuple(sink.encode(block) for sink in self.sinks)

    def write(self, block: Block, encoded: Sequence[torch.Tensor]) -> None:
        """To each its own."""
        for sink, part in zip(self.sinks, encoded, strict=True):
            sink.write(block, part)

    def close(self) -> None:
        """All of them."""
        for sink in self.sinks:
            sink.close()
