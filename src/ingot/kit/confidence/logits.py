"""The logits of scored positions, kept on disk: a temperature is tried on all of them again and again.

float32 as the model gave them, row by row, in a scratch file of positions · vocabulary · 4 bytes; read back in blocks,
so memory grows with neither. Running the model again for every temperature would take its time about ten times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Block = tuple[Floats, npt.NDArray[np.int64]]

#: Numbers of a block: 32 MB once they are float64.
_BLOCK = 1 << 22


class Logits(Protocol):
    """Rows of logits with the token that was right for each; can be gone through any number of times."""

    def blocks(self) -> Iterator[Block]:
        """(float64 logits, right tokens), some rows at a time, always cut alike."""


@dataclass(frozen=True)
class InMemory:
    """Few rows."""

    rows: npt.NDArray[np.float32]
    right: npt.NDArray[np.int64]

    def blocks(self) -> Iterator[Block]:
        """Some rows at a time."""
        size = max(1, _BLOCK // self.rows.shape[1])
        for at in range(0, len(self.rows), size):
            yield self.rows[at : at + size].astype(np.float64), self.right[at : at + size]


class OnDisk:
    """Rows in a new file: ``add`` them, then go through them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._right: list[npt.NDArray[np.int64]] = []
        self._width = 0
        path.touch(exist_ok=False)

    def add(self, rows: npt.NDArray[np.float32], right: npt.NDArray[np.int64]) -> None:
        """Append rows; all have one width."""
        self._width = rows.shape[1]
        self._right.append(right)
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())

    def blocks(self) -> Iterator[Block]:
        """Some rows at a time."""
        right = np.concatenate(self._right)
        size = max(1, _BLOCK // self._width)
        with self._path.open("rb") as file:
            for at in range(0, len(right), size):
                part = right[at : at + size]
                rows = np.fromfile(file, np.float32, len(part) * self._width).reshape(len(part), self._width)
                yield rows.astype(np.float64), part


@dataclass(frozen=True)
class Sure:
    """What rows of logits say. ``logit``: log-odds of the likeliest token; ``right``: whether it was the one; ``nll``
    of the right token in nats."""

    logit: Floats
    right: npt.NDArray[np.bool_]
    nll: Floats


def sure(rows: Floats, right: npt.NDArray[np.int64], temperature: float = 1.0) -> Sure:
    """How sure a model is of its likeliest token, and whether it is right.

    The odds are taken as the sum over the other tokens, so that a confidence near 1 loses no digits. Of equal logits
    the first token is the likeliest.
    """
    scaled = rows / temperature
    top = scaled.argmax(axis=1)
    index = np.arange(len(scaled))
    scaled -= scaled[index, top][:, None]
    at_right = scaled[index, right]
    others = np.exp(scaled)
    others[index, top] = 0.0
    odds = np.maximum(others.sum(axis=1), 1e-300)  # exp underflows where nothing else is possible
    return Sure(-np.log(odds), top == right, np.log1p(odds) - at_right)


def chance(logit: Floats) -> Floats:
    """The probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))
