"""The files of a GGUF: each laid out before its first byte, written once, hashed as it is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.core.digest import FileRecord, hash_file
from ingot.kit.gguf.writer import Field, TensorInfo, header
from ingot.kit.stream.layout import Shard
from ingot.kit.stream.shard_hash import ShardHash
from ingot.kit.stream.sharded_sink import write_all


class Part:
    """One file, whose tensors have the numbers from ``first`` on. Pieces of a tensor come in order.

    With ``late`` some field of the header is not known yet: the file is hashed by ``complete``, in one more read.
    """

    def __init__(self, path: Path, fields: Sequence[Field], infos: Sequence[TensorInfo], *, first: int) -> None:
        self.path, self.infos = path, tuple(infos)
        self._fields = list(fields)
        self._head = header(self._fields, self.infos)
        places, at = [], len(self._head)
        for number, info in enumerate(self.infos, first):
            places.append((number, at))
            at += info.nbytes + info.padding
        self.size = at
        self._ends = {
            number: begin + info.nbytes + info.padding for (number, begin), info in zip(places, infos, strict=True)
        }
        self._at = dict(places)
        self._shard = Shard(path.name, self._head, tuple(places), self.size)
        self._hash: ShardHash | None = None
        self._record: FileRecord | None = None
        self._file = -1

    def begin(self, number: int) -> int:
        """The first byte of a tensor."""
        return dict(self._shard.tensors)[number]

    def open(self, *, late: bool) -> None:
        """Begin the file."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        write_all(self._file, self._head, 0)
        if not late:
            # what comes before its turn lies in the file already, and is read back from there
            self._hash = ShardHash(self._shard, lambda _at, _piece: None, self._read_back)

    def put(self, number: int, piece: Any) -> None:
        """Write the next bytes of a tensor. ValueError when there are more than it has."""
        end = self._at[number] + len(piece)
        if end > self._ends[number]:
            raise ValueError(f"{self.path.name}: too many bytes for tensor {number}")
        write_all(self._file, piece, self._at[number])
        self._at[number] = end

    def hash(self, number: int, piece: Any) -> None:
        """The same bytes, by the thread that hashes, once they are written."""
        if self._hash is not None and len(piece):
            self._hash.update(number, piece)

    def close(self) -> None:
        """After the last byte. ValueError when a tensor is not whole."""
        short = [number for number, end in self._ends.items() if self._at[number] != end]
        if short:
            raise ValueError(f"{self.path.name}: {len(short)} tensors are not whole")
        self.abort()
        if self._hash is not None:
            self._record = self._hash.record()

    def abort(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def complete(self, late: Sequence[Field]) -> None:
        """Have fields of equal size say what is known now, by their keys; a file that changes is hashed anew."""
        known = {item.key: item for item in late}
        head = header([known.get(item.key, item) for item in self._fields], self.infos)
        if len(head) != len(self._head):
            raise ValueError("a late field changed the size of the header")
        if self._record is not None and head == self._head:
            return
        with self.path.open("r+b") as file:
            file.write(head)
        self._head, self._record = head, None

    def record(self) -> FileRecord:
        """The file as it was hashed on the way, or once its header is complete."""
        if self._record is None:
            self._record = FileRecord(self.path.name, *hash_file(self.path))
        return self._record

    def _read_back(self, at: int, size: int) -> bytes:
        return os.pread(self._file, size, at)
