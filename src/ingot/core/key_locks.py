"""The locks of keys: of several processes and threads, one builds what stands under a key, and the others wait.

Beside them, one lock that all builders hold together, and ``gc`` alone: what a living build relies on stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ingot.core import disk, locks

#: How long ``gc`` waits for a moment in which nothing is built.
_PATIENCE_S = 1.0


def living(store: Path) -> AbstractContextManager[None]:
    """Held by whoever builds, together with others."""
    return locks.shared(_living(store))


def alone(store: Path) -> AbstractContextManager[None]:
    """Held by whoever takes results out of the store; Busy (E-BUSY) while anybody builds."""
    return locks.held(_living(store), "has been building in this project", _PATIENCE_S)


def _living(store: Path) -> Path:
    disk.make_dirs(store / "locks")
    return store / "locks" / "living.lock"


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
