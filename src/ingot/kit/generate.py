"""One way to generate from any backend: prompt ids in, token ids and text out, and why it ended.

Laws. Greedy decoding takes the likeliest token, of equals the one with the lowest id. Sampling draws from
softmax(logits / temperature) cut to its nucleus (top-p, https://arxiv.org/abs/1904.09751) with numpy's PCG64, in
float64: equal logits and an equal seed give equal tokens. A token that ends the answer is left out of it. A text ends
before the first of its stop texts; its tokens are those that were generated, what completed the stop text included.
With a mask only what it allows is ever taken, the tokens that end an answer too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput
from ingot.kit.backends import Backend, Next, likeliest, not_finite

#: Why an answer ended: the model said so (``end``), a stop text (``stop``), ``max_tokens`` (``limit``), no more room
#: in its context (``context``), or the mask allows nothing more (``complete``).
Ended = Literal["end", "stop", "limit", "context", "complete"]

#: One truth value for each token of the vocabulary. What it is too short for (a padded vocabulary) is not allowed.
Mask = npt.NDArray[np.bool_]

#: Which tokens may follow those generated so far; it is asked once for each of them, in order.
Allowed = Callable[[Sequence[int]], Mask]

#: So many tokens back a repetition is made less likely: llama.cpp's own figure.
_LATELY = 64
#: Tokens decoded beyond a stop text's length: special ones have no text, and a cut character reads otherwise.
_SLACK = 8


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen and when they end; with ``temperature`` 0, greedily, without ``top_p`` and ``seed``.

    ``penalty``: what was said lately is divided by it (see ``penalized``); 1 is none.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    penalty: float = 1.0


@dataclass(frozen=True)
class Generation:
    """What was generated; ``text`` is that of ``tokens`` alone, cut before a stop text."""

    tokens: tuple[int, ...]
    text: str
    ended: Ended


def generate(backend: Backend, ids: Sequence[int], decoding: Decoding, allowed: Allowed | None = None) -> Generation:
    """What a model says after ``ids``.

    RefusedInput: E-GENERATE-EMPTY without ids, E-GENERATE-CONTEXT where they leave no room, E-EVAL-NAN for logits that
    are no numbers.
    """
    stream = Stream(backend, ids, decoding, allowed)
    for _ in stream:
        pass
    return stream.generation()


class Stream:
    """The tokens of an answer as they come; ``ended`` is known once there are no more."""

    def __init__(
        self, backend: Backend, ids: Sequence[int], decoding: Decoding, allowed: Allowed | None = None
    ) -> None:
        """See ``generate``."""
        _check(backend, ids)
        self.tokens: list[int] = []
        self.ended: Ended | None = None
        self._backend, self._ids, self._decoding, self._allowed = backend, ids, decoding, allowed
        self._random = np.random.Generator(np.random.PCG64(decoding.seed))
        self._room = backend.context - len(ids)
        self._tail = max((len(stop.encode()) for stop in decoding.stop), default=0) + _SLACK

    def __iter__(self) -> Iterator[int]:
        """Each token once it is chosen; nothing is computed that cannot become a part of the answer."""
        mask = self._mask()
        if mask is not None and not mask.any():
            self.ended = "complete"
            return
        row = self._backend.prefill(self._ids)
        while (token := self._next(row, mask)) is not None:
            self.tokens.append(token)
            yield token
            mask = self._mask()
            self.ended = self._over(mask)
            if self.ended is not None:
                return
            row = self._backend.step(token)

    def generation(self) -> Generation:
        """What was generated so far."""
        text = self._backend.text(self.tokens)
        return Generation(tuple(self.tokens), text[: self._stop_in(text)], self.ended or "limit")

    def _next(self, row: Next, mask: Mask | None) -> int | None:
        """The next token; None where the model ends the answer instead."""
        if self._decoding.penalty != 1:
            row = penalized(row, self.tokens[-_LATELY:], self._decoding.penalty)
        if mask is not None:
            wide = np.zeros(len(row), np.bool_)
            wide[: len(mask)] = mask[: len(row)]
            row = np.where(wide, row, np.float32(-np.inf))
        token = self._choose(row)
        if self._backend.ends(token):
            self.ended = "end"
            return None
        return token

    def _mask(self) -> Mask | None:
        return None if self._allowed is None else self._allowed(self.tokens)

    def _choose(self, row: Next) -> int:
        token = likeliest(row)
        if not np.isfinite(row[token]):
            raise not_finite()
        return token if self._decoding.temperature == 0 else drawn(row, self._decoding, self._random)

    def _over(self, mask: Mask | None) -> Ended | None:
        if self._decoding.stop and self._stopped():
            return "stop"
        if mask is not None and not mask.any():
            return "complete"
        if len(self.tokens) >= self._decoding.max_tokens:
            return "limit"
        return "context" if len(self.tokens) >= self._room else None

    def _stopped(self) -> bool:
        """Whether the text holds a stop text. The last tokens tell where to look: each has a byte at the least."""
        if not any(stop in self._backend.text(self.tokens[-self._tail :]) for stop in self._decoding.stop):
            return False
        text = self._backend.text(self.tokens)
        return self._stop_in(text) < len(text)

    def _stop_in(self, text: str) -> int:
        """Where the first stop text of a text begins; its length where there is none."""
        return min([at for stop in self._decoding.stop if (at := text.find(stop)) >= 0], default=len(text))


def drawn(row: Next, decoding: Decoding, random: np.random.Generator) -> int:
    """A token of softmax(row / temperature) cut to the fewest likeliest tokens that have ``top_p`` together."""
    scaled = row.astype(np.float64) / decoding.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order])
    # those before which less than top_p is reached: the likeliest one always
    kept = int(np.searchsorted(sums, decoding.top_p * sums[-1], side="left")) + 1
    kept = min(kept, int(np.count_nonzero(weights)))
    return int(order[np.searchsorted(sums[:kept], random.random() * sums[kept - 1], side="right")])


def penalized(row: Next, lately: Sequence[int], penalty: float) -> Next:
    """Logits after what was said lately lost some of theirs: a positive one is divided, a negative one multiplied.

    The penalty is the one of https://arxiv.org/abs/1909.05858, as llama.cpp has it.
    """
    row = row.copy()
    found = sorted(set(lately))
    row[found] = np.where(row[found] > 0, row[found] / np.float32(penalty), row[found] * np.float32(penalty))
    return row


def _check(backend: Backend, ids: Sequence[int]) -> None:
    if not ids:
        raise RefusedInput(
            "E-GENERATE-EMPTY",
            "a prompt has no token, so there is nothing to continue",
            hint="the model's tokenizer adds no begin token: give every prompt at least a word",
        )
    if len(ids) >= backend.context:
        raise RefusedInput(
            "E-GENERATE-CONTEXT",
            f"a prompt has {len(ids)} tokens and the model's context is {backend.context}",
            hint="shorten the prompts, or leave out those that do not fit",
        )
