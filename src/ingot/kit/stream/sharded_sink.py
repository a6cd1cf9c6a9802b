"""What the sink that writes safetensors and the one that only hashes have in common: layout, hashes, counts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import xxhash

from ingot.core.digest import FileRecord, sha256_bytes
from ingot.kit.sparsity import zeros
from ingot.kit.stream.layout import INDEX, Shard, lay_out
from ingot.kit.stream.shard_hash import ShardHash
from ingot.kit.stream.verified import TensorHash
from ingot.kit.stream.vocabulary import Block, Slot

#: The most bytes of weights in one file, unless a spec says otherwise.
SHARD_BYTES = 5_000_000_000


class ShardedSink:
    """Counts and hashes a model as the safetensors files that it is laid out in (``layout``).

    Hashing has a thread of its own, one block behind what is written. Subclasses keep the bytes (``_keep``,
    ``_read_back``).
    """

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        self._shard_bytes = shard_bytes
        self._slots: Sequence[Slot] = ()
        self._home: dict[int, int] = {}
        self._hashes: list[ShardHash] = []
        self._tensor_hash = TensorHash()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._files: tuple[FileRecord, ...] = ()
        self._zeros: dict[int, int] = {}
        self._index: bytes | None = None

    # --- what was counted (see ``Counted``) -------------------------------------------------------------------

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Records of the safetensors files and of their index, once all was closed."""
        return self._files

    @property
    def tensors(self) -> Mapping[str, str]:
        """The xxh3-128 of each tensor's bytes, by name."""
        return self._tensor_hash.digests

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(slot.elements for slot in self._slots)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(self._zeros.values())

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(slot.nbytes for slot in self._slots)

    @property
    def file_bytes(self) -> int:
        """Bytes of the safetensors files."""
        return sum(record.size for record in self._files if record.path.endswith(".safetensors"))

    # --- a sink ------------------------------------------------------------------------------------------------

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Sink``: everything is laid out."""
        self._slots = tuple(slots)
        layout = lay_out(slots, self._shard_bytes)
        self._index = layout.index
        for number, shard in enumerate(layout.shards):
            self._home |= dict.fromkeys((index for index, _ in shard.tensors), number)
            self._hashes.append(ShardHash(shard, self._keeper(number), self._reader(number)))
        self._open(layout.shards)
        self._thread = ThreadPoolExecutor(1, "ingot-hash")

    def grain(self, slot: Slot) -> int:
        """See ``Sink``: any rows."""
        del slot
        return 1

    def encode(self, block: Block) -> tuple[memoryview, int]:
        """The bytes of a block, and how many of its elements are zero."""
        rows = block.rows.detach().contiguous().flatten()
        return memoryview(rows.view(torch.uint8).numpy()), zeros(rows)

    def write(self, block: Block, encoded: tuple[memoryview, int]) -> None:
        """See ``Sink``: written here while the hashing thread reads the same bytes."""
        piece, empty = encoded
        self._zeros[block.index] = self._zeros.get(block.index, 0) + empty
        self._wait()
        assert self._thread is not None
        number = self._home[block.index]
        last = block.start + block.rows.shape[0] >= self._slots[block.index].rows if block.rows.ndim else True
        self._pending = number, self._thread.submit(self._hash, block.index, piece, last)
        self._put(number, block.index, piece)

    def close(self) -> None:
        """See ``Sink``: the files are whole, and their records known."""
        self._wait()
        self.abort()
        records = [shard.record() for shard in self._hashes]
        if self._index is not None:
            fast = xxhash.xxh3_128(self._index).hexdigest()
            records.append(FileRecord(INDEX, len(self._index), sha256_bytes(self._index), fast))
            self._put_index(self._index)
        self._files = tuple(sorted(records))

    def abort(self) -> None:
        """End the hashing thread and let go of all files."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        for number in range(len(self._hashes)):
            self._release(number)

    def _wait(self) -> None:
        """Until what was written has been hashed; a file of which nothing is missing any more is let go of."""
        if self._pending is not None:
            number, hashed = self._pending
            hashed.result()
            if self._hashes[number].complete:
                self._release(number)

    def _hash(self, index: int, piece: memoryview, last: bool) -> None:  # noqa: FBT001 - called through submit
        self._tensor_hash.update(self._slots[index].name, piece, last=last)
        if piece.nbytes:
            self._hashes[self._home[index]].update(index, piece)

    def _keeper(self, number: int) -> Any:
        return lambda at, piece: self._keep(number, at, piece)

    def _reader(self, number: int) -> Any:
        return lambda at, size: self._read_back(number, at, size)

    # --- what subclasses do with the bytes --------------------------------------------------------------------

    def _open(self, shards: Sequence[Shard]) -> None:
        """Make ready for these files."""

    def _put(self, number: int, index: int, piece: memoryview) -> None:
        """The next bytes of a tensor of shard ``number``, on the writing thread."""

    def _put_index(self, text: bytes) -> None:
        """The index file."""

    def _keep(self, number: int, at: int, piece: memoryview) -> None:
        """Bytes that are hashed later, on the hashing thread."""

    def _read_back(self, number: int, at: int, size: int) -> bytes:
        """Bytes that were put or kept."""
        raise NotImplementedError

    def _release(self, number: int) -> None:
        """Close the file of a shard, if it is open."""


def write_all(descriptor: int, piece: Any, at: int) -> None:
    """Write all bytes at ``at``."""
    view = memoryview(piece)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
