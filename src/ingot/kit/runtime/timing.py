"""The one loop that times a runtime: a prompt read at once, then tokens one by one.

What is timed ends when the next token is known: the logits are there and the likeliest of them was looked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ingot.kit.backends import Next, likeliest


class Runner(Protocol):
    """What can be timed: any backend, and whatever reads a prompt and takes tokens as backends do."""

    def prefill(self, ids: Sequence[int]) -> Next:
        """Forget everything, read a prompt in one go, return the logits of the next token."""
        ...

    def step(self, token: int) -> Next:
        """Append one token, return the logits of the next one."""
        ...


@dataclass(frozen=True)
class Run:
    """The seconds of one run: until the first token is known, and for each token after it. ``said``: the tokens."""

    first: float
    steps: tuple[float, ...]
    said: tuple[int, ...]


def timed(runner: Runner, prompt: Sequence[int], count: int, choose: Callable[[int, int], int] | None = None) -> Run:
    """Read a prompt and ``count`` tokens after it.

    The token that is read next is the likeliest one, or what ``choose(index, likeliest)`` says. The times of the steps
    leave no gap: their sum is the time between the first token and the last.
    """
    marks = [time.perf_counter()]
    said = [likeliest(runner.prefill(prompt))]
    marks.append(time.perf_counter())
    for index in range(count):
        token = said[-1] if choose is None else choose(index, said[-1])
        said.append(likeliest(runner.step(token)))
        marks.append(time.perf_counter())
    spans = [later - earlier for earlier, later in pairwise(marks)]
    return Run(spans[0], tuple(spans[1:]), tuple(said))


def continued(tokens: Sequence[int]) -> Callable[[int, int], int]:
    """A choice that reads the same tokens whatever a model says, so that all do the same work."""
    return lambda index, _: tokens[index]
