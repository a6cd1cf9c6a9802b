"""Many crashes at once: labs in processes of their own that share the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from crashlab import Lab, Said, at_home
from crashmodel import Image


@dataclass(frozen=True)
class Case:
    """One crash: what lies on the disk, what must hold, and how it came about."""

    image: Image
    said: Said
    label: str


class Labs:
    """Labs in processes of their own, one a processor, that share the work."""

    def __init__(self, base: Path) -> None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = get_context("spawn").Pool(processors, _move_in, (base,))

    def broken_laws(self, cases: Sequence[Case]) -> list[str]:
        """What is wrong after any of these crashes."""
        size = max(1, min(100, len(cases) // 8))
        parts = [cases[at : at + size] for at in range(0, len(cases), size)]
        return [text for found in self._pool.imap_unordered(_verify, parts) for text in found]

    def close(self) -> None:
        """End the processes."""
        self._pool.terminate()
        self._pool.join()


_homes: list[AbstractContextManager[Lab]] = []
_ours: list[Lab] = []


def _move_in(base: Path) -> None:
    # For the life of this process, so it is never left; its folder goes with all others.
    _homes.append(at_home(base / f"lab-{os.getpid()}"))
    _ours.append(_homes[0].__enter__())


def _verify(cases: Sequence[Case]) -> list[str]:
    wrong = []
    for case in cases:
        _ours[0].lay_out(case.image)
        wrong += [f"{case.label}: {text}" for text in _ours[0].broken_laws(case.said)]
    return wrong
