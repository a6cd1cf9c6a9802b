"""Quantized tensors taken over from earlier files instead of being made again.

The bytes of a quantized tensor follow from its *recipe* (the form of the source's tensor, what is done to it on the
way, the type, the importance matrix's row, ggml's library by its content) and from the bytes of the source's tensor.
Those are predicted before they are read: by the object and the name, or by what the receipt of the input says. What is
taken is compared twice, in the reads that happen anyway: the bytes copied with what the earlier build wrote, the bytes
of the source with what they were then. If either differs, nothing is published (``Changed``), and all is made anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ingot.core import files
from ingot.core.digest import canonical_json, hash_file, sha256_bytes
from ingot.core.plan import tool_version
from ingot.core.stage import Earlier, Given
from ingot.kit.gguf.ggml import ggml
from ingot.kit.stream.chain import Origin
from ingot.kit.stream.vocabulary import Slot


class Changed(Exception):
    """What was to be taken over is not what an earlier build said; only an attempt without it is sound."""


@dataclass(frozen=True)
class Kept:
    """A tensor in an earlier file: where its bytes lie, and what they and their source's bytes must be (xxh3-128).

    ``encode_ns`` is the processor time that encoding took when it was done.
    """

    path: Path
    at: int
    digest: str
    source_digest: str
    encode_ns: int


@cache
def _library() -> str:
    return hash_file(Path(str(ggml().library._name)))[1]  # noqa: SLF001 - ctypes has no other word for the path


def recipe(origin: Origin, target: Slot, kind: str, imatrix: torch.Tensor | None, through: Sequence[Any]) -> str | None:
    """What the bytes of a tensor follow from beside the source's, as one SHA-256; None where a map is not known.

    ``through`` are the kinds of the virtual targets on the way, with revision and tools: they count where anything but
    the last link, which is ours, changes the tensor.
    """
    if None in origin.identities:
        return None
    parts = {
        "source": [origin.source.dtype, list(origin.source.shape)],
        "maps": [identity for identity in origin.identities if identity],
        "through": list(through) if any(origin.identities[:-1]) else [],
        "target": [target.dtype, list(target.shape)],
        "type": kind,
        "imatrix": None if imatrix is None else sha256_bytes(memoryview(imatrix.contiguous().numpy())),
        "ggml": _library(),
    }
    return sha256_bytes(canonical_json(parts))


def through(given: Given, role: str) -> tuple[Any, ...]:
    """Kind, revision and tools of each virtual target that a role flows through, the nearest first."""
    if role not in given.virtual:
        return ()
    stage, below = given.virtual[role].stage, given.virtual[role].given
    tools = {name: tool_version(name) for name in sorted(stage.tools_used())}
    return [stage.kind, stage.revision, tools], *through(below, role)


class Shelf:
    """The tensors of earlier files, by recipe and source; files stay open until it is closed."""

    def __init__(self, earlier: Sequence[Earlier], origin: str, known: Mapping[str, str]) -> None:
        """``origin`` is the digest of the object that is read, ``known`` the xxh3-128 of its tensors, as far as told.

        Records of another form are passed over.
        """
        self._known: dict[str, str] = {}
        self._kept: dict[tuple[str, str], Kept] = {}
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        for item in earlier:
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                self._take(item, origin)
        self._known |= known

    def _take(self, item: Earlier, origin: str) -> None:
        for name, block in item.blocks["tensors"].items():
            source = str(block["source_xxh3_128"])
            file = str(block["file"])
            if Path(file).name != file:
                continue
            kept = Kept(item.folder / file, int(block["at"]), item.tensors[name], source, int(block["encode_ns"]))
            self._kept.setdefault((str(block["recipe"]), source), kept)
            if origin and item.blocks["source"] == origin:
                self._known.setdefault(str(block["source_name"]), source)

    def find(self, source: str, recipe: str | None, size: int) -> Kept | None:
        """The tensor of this recipe from the source's tensor of this name, if its ``size`` bytes lie there."""
        expected = self._known.get(source)
        kept = None if recipe is None or expected is None else self._kept.get((recipe, expected))
        if kept is None:
            return None
        try:
            return kept if 0 <= kept.at <= os.fstat(self._open(kept.path)).st_size - size else None
        except OSError:
            return None

    def read(self, kept: Kept, start: int, size: int) -> torch.Tensor:
        """Bytes of a tensor from its byte ``start`` on. Changed where they cannot be read; compared by the caller."""
        piece = torch.empty(size, dtype=torch.uint8)
        view, filled = memoryview(piece.numpy()), 0
        while filled < size:
            try:
                count = os.preadv(self._open(kept.path), [view[filled:]], kept.at + start + filled)
            except OSError as error:
                raise Changed(f"{kept.path.name} cannot be read") from error
            if not count:
                raise Changed(f"{kept.path.name} ends early")
            filled += count
        return piece

    def _open(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = files.open_regular(path)
            return self._files[path]

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


@dataclass
class Making:
    """How one quantized tensor comes about: by which recipe, from which earlier file if any, and what that costs."""

    origin: Origin
    recipe: str | None
    kept: Kept | None
    nbytes: int
    spent_ns: int = 0


class Makings:
    """How the quantized tensors of one file come about; ``chosen`` when the sink begins, told when all has flowed."""

    def __init__(self, shelf: Shelf, origins: Sequence[Origin], through: Sequence[Any] = ()) -> None:
        self._shelf, self._origins, self._through = shelf, origins, through
        self.of: dict[int, Making] = {}

    def choose(self, index: int, slot: Slot, kind: str, imatrix: torch.Tensor | None, size: int) -> None:
        """Look for an equal of the tensor in slot ``index``, of ``size`` bytes."""
        origin = self._origins[index]
        made = recipe(origin, slot, kind, imatrix, self._through)
        self.of[index] = Making(origin, made, self._shelf.find(origin.source.name, made, size), size)

    def kept(self, index: int) -> Kept | None:
        """What a tensor is taken from."""
        making = self.of.get(index)
        return None if making is None else making.kept

    def read(self, index: int, start: int, size: int) -> torch.Tensor:
        """Bytes of a tensor that is taken over."""
        kept = self.of[index].kept
        assert kept is not None
        return self._shelf.read(kept, start, size)

    def spend(self, index: int, nanoseconds: int) -> None:
        """Add what a block of a tensor took."""
        if index in self.of:
            self.of[index].spent_ns += nanoseconds

    @property
    def taken(self) -> list[Making]:
        """The tensors that were taken over."""
        return [making for making in self.of.values() if making.kept]

    def compare(self, sources: Mapping[str, str]) -> None:
        """Changed where a source's tensor, as it was read, is not the one that an earlier file was made of."""
        for making in self.taken:
            name = making.origin.source.name
            if making.kept is None or sources.get(name) != making.kept.source_digest:
                raise Changed(f"{name} is not what was known of it")

    @property
    def saved_s(self) -> float:
        """Processor time that encoding took when it was done, less the time of copying."""
        return sum((making.kept.encode_ns - making.spent_ns) / 1e9 for making in self.taken if making.kept)

    def record(self, sources: Mapping[str, str], places: Mapping[int, tuple[str, str, int]]) -> dict[str, Any]:
        """By tensor, what a later build has to know; ``places`` are (tensor, file, first byte) by slot."""
        found = {}
        for index, making in self.of.items():
            name, file, at = places[index]
            source = making.origin.source.name
            if making.recipe is None or source not in sources:
                continue
            found[name] = {
                "file": file, "at": at, "recipe": making.recipe, "source_name": source,
                "source_xxh3_128": sources[source],
                "encode_ns": making.kept.encode_ns if making.kept else making.spent_ns,
            }  # fmt: skip
        return found
