"""One backend that remembers what it read, so that texts which begin alike are read once where they do.

A backend that can go back to an earlier point has ``resumed`` (see ``Resuming``); with any other each text is read as
a whole, and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ingot.kit.backends import Backend, Next
from ingot.kit.chat import Template


@runtime_checkable
class Resuming(Protocol):
    """A backend that keeps what it read and can forget the end of it."""

    def resumed(self, ids: Sequence[int], kept: int, first: int) -> Iterator[torch.Tensor]:
        """Logits that follow ``ids[first:]``, in order and in parts; the first ``kept`` ids were read last.

        ``kept`` ≤ ``first`` < the number of ids. Once all parts were taken all of ``ids`` counts as read.
        """
        ...


class Reader:
    """A backend as ``kit.generate`` takes it, and a scorer of texts; ``fed`` counts the tokens that were computed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._read: list[int] = []
        self.fed = 0
        self.container, self.precision, self.runtime = backend.container, backend.precision, backend.runtime
        self.parameters, self.bytes = backend.parameters, backend.bytes
        self.context, self.template = backend.context, backend.template
        self.encode, self.question = backend.encode, backend.question
        self.ends, self.text = backend.ends, backend.text

    template: Template

    def rows(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits (rows, vocabulary) that follow the tokens ``ids[first:]``, float32, in parts that memory holds."""
        if not isinstance(self._backend, Resuming):
            self._read = []
            self.fed += len(ids)
            # what is predicted after the last token is asked for as if one more followed
            yield from self._backend.logits([*ids, ids[-1]], first + 1)
            return
        kept = min(self._shared(ids), first)
        self.fed += len(ids) - kept
        self._read = []
        yield from self._backend.resumed(ids, kept, first)
        self._read = list(ids)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """As the backend's own: nothing is remembered of it."""
        self._read = []
        return self._backend.logits(ids, first)

    def prefill(self, ids: Sequence[int]) -> Next:
        """Read a prompt; the logits of the next token. What it shares with the last text is not read again."""
        if isinstance(self._backend, Resuming):
            (part,) = self.rows(ids, len(ids) - 1)
            row: Next = part[-1].numpy().astype(np.float32, copy=False)
            return row
        self.fed += len(ids)
        return self._backend.prefill(ids)

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one."""
        self.fed += 1
        self._read.append(token)
        return self._backend.step(token)

    def _shared(self, ids: Sequence[int]) -> int:
        pairs = zip(self._read, ids, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(self._read), len(ids)))
