"""A sink that writes nothing: the records, digests and counts of the files that would have been written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

from ingot.kit.stream.sharded_sink import SHARD_BYTES, ShardedSink, write_all


class HashSink(ShardedSink):
    """Hashes what ``SafetensorsSink`` would write; what comes before its turn waits in nameless scratch files."""

    def __init__(self, scratch: Path, shard_bytes: int = SHARD_BYTES) -> None:
        super().__init__(shard_bytes)
        self._scratch = scratch
        self._waiting: dict[int, IO[bytes]] = {}

    def _keep(self, number: int, at: int, piece: memoryview) -> None:
        if number not in self._waiting:
            self._waiting[number] = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by _release
        write_all(self._waiting[number].fileno(), piece, at)

    def _read_back(self, number: int, at: int, size: int) -> bytes:
        return os.pread(self._waiting[number].fileno(), size, at)

    def _release(self, number: int) -> None:
        file = self._waiting.pop(number, None)
        if file is not None:
            file.close()
