"""Many crashes at once: recorded runs, the crashes of them, and labs in processes of their own that share the work."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from crashlab import Lab, Said, at_home
from crashmodel import Image, Loss, Tree, cut, killed, losses
from crashrecord import Recorder, scanned


@dataclass(frozen=True)
class Case:
    """One crash: what lies on the disk, what must hold, and how it came about."""

    image: Image
    said: Said
    label: str


@dataclass(frozen=True)
class Scene:
    """A recorded run, and what was said before it."""

    name: str
    said: Said
    recorder: Recorder

    def case(self, at: int, tree: Tree, loss: Loss | None) -> Case:
        """The crash after ``at`` events: a kill, or a power cut with this loss."""
        image = killed(tree) if loss is None else cut(tree, loss)
        events = self.recorder.events
        how = "killed" if loss is None else f"power cut ({loss.variant}, lost {sorted(loss.steps)})"
        label = f"{self.name}: {how} after {at} of {len(events)} ({events[at - 1].name if at else 'start'})"
        return Case(image, self.said.after(events[:at]), label)


def recorded(lab: Lab, name: str, said: Said, tree: Tree | None = None) -> Scene:
    """Record what ``said.act`` does, or a run, from the disk as it is."""
    recorder = lab.record(tree, said.act)
    assert killed(scanned(lab.base)) == killed(recorder.tree), "something was done that was not recorded"
    return Scene(name, replace(said, tried=said.tried | set(lab.lines())), recorder)


def crashes(scene: Scene, chance: random.Random, subsets: int) -> Iterator[tuple[int, Tree, Loss | None]]:
    """Every point of a run with every way to crash there that is tried; the tree goes on changing."""
    for at, tree in scene.recorder.trees():
        yield at, tree, None
        for loss in losses(tree, chance, subsets):
            yield at, tree, loss


def distinct(found: Iterator[Case]) -> list[Case]:
    """One case for each tree: the last, which has the most to keep."""
    return list({frozenset(case.image.items()): case for case in found}.values())


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
