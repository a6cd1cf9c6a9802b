"""What a model computed on a text, in the one form in which source and export are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """Of a text of n tokens: ``logits`` (n, vocabulary) of every position, and where it was asked for ``hidden``.

    ``hidden[0]`` is the embedding, ``hidden[i]`` what layer i - 1 adds up to: each (n, hidden), before the last norm.
    """

    logits: Array
    hidden: tuple[Array, ...] = ()


class Traced(Protocol):
    """Anything that runs a text of token ids: a source model, or an export as it was saved."""

    def trace(self, ids: Sequence[int], *, probes: bool) -> Trace:
        """Run ids that nothing precedes; with ``probes`` give the hidden states, too."""
        ...
