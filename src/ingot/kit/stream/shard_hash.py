"""The hashes of a file whose pieces do not come in the order of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

from ingot.core.digest import FileRecord
from ingot.kit.stream.layout import Shard

#: Gives ``size`` bytes at ``offset`` of what was kept of the file.
ReadBack = Callable[[int, int], bytes]
#: Keeps a piece at ``offset`` until it is read back.
Keep = Callable[[int, Any], None]

_BACK = 4 << 20


class ShardHash:
    """SHA-256 and xxh3-128 of one shard, from its beginning on as far as its bytes are known.

    A piece at that place is hashed as it comes. One further on goes to ``keep`` and is read back once all before it
    has been hashed. Each tensor's pieces come in order. Used by one thread.
    """

    def __init__(self, shard: Shard, keep: Keep, read_back: ReadBack) -> None:
        self._shard, self._keep, self._read_back = shard, keep, read_back
        self._sha, self._fast = hashlib.sha256(shard.head), xxhash.xxh3_128(shard.head)
        self._at = len(shard.head)
        ends = [*(begin for _, begin in shard.tensors[1:]), shard.size]
        self._ends = [(index, end) for (index, _), end in zip(shard.tensors, ends, strict=True)]
        self._known = dict(shard.tensors)
        self._next = 0

    def update(self, index: int, piece: Any) -> None:
        """The next bytes of the tensor in slot ``index``."""
        at = self._known[index]
        self._known[index] += len(piece)
        if at != self._at:
            self._keep(at, piece)
            return
        self._hash(piece)
        while self._next < len(self._ends):
            following, end = self._ends[self._next]
            while self._at < self._known[following]:
                self._hash(self._read_back(self._at, min(_BACK, self._known[following] - self._at)))
            if self._at < end:
                return
            self._next += 1

    @property
    def complete(self) -> bool:
        """Whether all bytes have been hashed."""
        return self._at == self._shard.size

    def record(self) -> FileRecord:
        """The record of the whole file. ValueError when bytes are missing."""
        if not self.complete:
            raise ValueError(f"{self._shard.name}: {self._at} of {self._shard.size} bytes came")
        return FileRecord(self._shard.name, self._shard.size, self._sha.hexdigest(), self._fast.hexdigest())

    def _hash(self, piece: Any) -> None:
        self._sha.update(piece)
        self._fast.update(piece)
        self._at += len(piece)
