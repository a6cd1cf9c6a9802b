"""Lets a model flow: one thread reads, several map and encode, the caller writes, all at once and in bounded memory.

The bytes do not depend on threads or timing: blocks follow from shapes alone, each is mapped with one torch thread,
and they are written in order. The first error in that order, an interrupt too, stops everything and is raised when no
thread is left.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Protocol

import torch

from ingot.kit.stream.chain import Step, Written, compose
from ingot.kit.stream.vocabulary import Block, Sink, Tap, Weights

#: Bytes of blocks that are read and not yet written, as they come and as they end; one block may be larger.
WINDOW = 128 << 20


class Watch(Protocol):
    """Told how far a run is; a stage's ``Progress`` is one."""

    def __call__(self, done: float, total: float | None, unit: str) -> None:
        """``done`` of ``total`` in ``unit``."""


def run(
    weights: Weights,
    sinks: Sequence[Sink],
    *,
    threads: int = 1,
    window_bytes: int = WINDOW,
    watch: Watch | None = None,
) -> None:
    """Read the source once, through the chain, into every sink. Raises the first error, nothing running any more."""
    taps = [link.sink for link in weights.chain if isinstance(link, Tap)]
    try:
        steps = compose(weights, sinks)
        total = sum(step.slot.elements for step in steps)
        done = 0
        with _one_torch_thread(), closing(_Flow(weights, steps, threads, window_bytes)) as flow:
            for block, written in flow:
                for sink, part, encoded in written:
                    sink.write(part, encoded)
                done += block.rows.numel()
                if watch is not None:
                    watch(done, total, "parameters")
                # Whatever was written is let go of before the next block is waited for.
                del block, written
        for link in weights.chain:
            if not isinstance(link, Tap):
                link.finish()
        for sink in (*taps, *sinks):
            sink.close()
    except BaseException:
        for sink in (*taps, *sinks):
            abort = getattr(sink, "abort", None)
            if abort is not None:
                abort()
        raise


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Blocks are mapped side by side: torch's own threads would fight for the same cores, and could change sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Window:
    """Bytes in flight, bounded; one block is let in however large it is."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._stopped = False
        self._changed = threading.Condition()

    def enter(self, size: int) -> bool:
        """Wait for room; False when nothing is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._held or self._held + size <= self._most)
            self._held += size
            return not self._stopped

    def leave(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()


class _Flow:
    """The blocks of a source, mapped and encoded, in order."""

    def __init__(self, weights: Weights, steps: Sequence[Step], threads: int, window: int) -> None:
        self._source = weights.source
        self._steps = steps
        self._window = _Window(window)
        self._ready: SimpleQueue[tuple[int, Future[tuple[Block, list[Written]]]] | BaseException | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(max(1, threads), "ingot-map")
        self._reader = threading.Thread(target=self._read, name="ingot-read", daemon=True)
        self._reader.start()

    def __iter__(self) -> Iterator[tuple[Block, list[Written]]]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            size, future = item
            yield future.result()
            del item, future
            self._window.leave(size)

    def close(self) -> None:
        """Stop what still runs; returns when nothing does."""
        self._window.stop()
        self._reader.join()
        self._pool.shutdown(cancel_futures=True)

    def _read(self) -> None:
        try:
            rows = [step.block_rows() for step in self._steps]
            with closing(_closable(self._source.blocks(rows))) as blocks:
                for block in blocks:
                    size = self._size(block)
                    if not self._window.enter(size):
                        return
                    self._ready.put((size, self._pool.submit(self._map, block)))
                    del block
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the blocks are taken
            self._ready.put(error)

    def _size(self, block: Block) -> int:
        step = self._steps[block.index]
        after: int = step.leaf_bytes * block.rows.numel() // max(1, step.slot.elements)
        return int(block.rows.nbytes) + after

    def _map(self, block: Block) -> tuple[Block, list[Written]]:
        written: list[Written] = []
        with torch.no_grad():
            self._steps[block.index].run(block.rows, block.start, written)
        return block, written


def _closable(blocks: Iterator[Block]) -> Generator[Block, None, None]:
    """Any iterator as one that can be closed."""
    yield from blocks
