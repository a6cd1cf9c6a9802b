"""A sink that writes safetensors files, hashed while they are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ingot.kit.stream.layout import INDEX, Shard
from ingot.kit.stream.sharded_sink import SHARD_BYTES, ShardedSink, write_all


class SafetensorsSink(ShardedSink):
    """Writes a model's files, and their index where there are several, into ``out``.

    Equal tensors in equal order give equal bytes, on however many threads.
    """

    def __init__(self, out: Path, shard_bytes: int = SHARD_BYTES) -> None:
        super().__init__(shard_bytes)
        self._out = out
        self._paths: list[Path] = []
        self._open_files: dict[int, int] = {}
        self._at: dict[int, int] = {}

    def _open(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            self._paths.append(self._out / shard.name)
            with self._paths[-1].open("xb") as file:
                file.write(shard.head)
            self._at |= dict(shard.tensors)

    def _put(self, number: int, index: int, piece: memoryview) -> None:
        if number not in self._open_files:
            self._open_files[number] = os.open(self._paths[number], os.O_RDWR | os.O_CLOEXEC)
        write_all(self._open_files[number], piece, self._at[index])
        self._at[index] += len(piece)

    def _put_index(self, text: bytes) -> None:
        (self._out / INDEX).write_bytes(text)

    def _read_back(self, number: int, at: int, size: int) -> bytes:
        # The block that a piece belongs to was written before the next one was handed to the hashing thread.
        return os.pread(self._open_files[number], size, at)

    def _release(self, number: int) -> None:
        descriptor = self._open_files.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)
