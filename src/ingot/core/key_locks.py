"""The locks of keys: of several processes and threads, one builds what stands under a key, and the others wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ingot.core import disk, locks


@contextmanager
def held(store: Path, keys: Sequence[str], tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the locks of these keys; always taken in one order, so that no two wait for each other.

    ``tell`` hears in words for whom one waits.
    """
    folder = store / "locks"
    disk.make_dirs(folder)

    def waiting(holder: locks.Holder | None) -> None:
        stopped = ", and is stopped" if holder is not None and holder.stopped else ""
        who = "" if holder is None else f": {holder}{stopped}"
        ours = holder is not None and holder.pid == os.getpid()
        tell("it is built in one pass with others" if ours else f"another ingot builds this target{who}")

    with ExitStack() as stack:
        for key in sorted(set(keys)):
            stack.enter_context(locks.held_for_long(folder / f"{key}.lock", waiting))
        yield
