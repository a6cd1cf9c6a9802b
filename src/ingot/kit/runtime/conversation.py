"""Questions to a model and its answers, token by token, over any backend.

Laws. The next token is the likeliest one, those that the answer has said lately made a little less likely: the same
questions give the same answers. A model with a chat template remembers the conversation; one without is a plain
language model that continues each text anew. Pieces of an answer are whole characters, and together they are the text
of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ingot.errors import UsageError
from ingot.kit.backends import Backend, Next, likeliest, not_finite

#: llama.cpp's own figures: small models go round in circles otherwise.
_PENALTY, _LATELY = 1.1, 64
#: So many tokens of the prompt tell a tokenizer whether an answer begins a word or goes on.
_CONTEXT = 8
_UNFINISHED = "\ufffd"


class Conversation:
    """What was said; ``context`` is how many tokens of it may be read at once."""

    def __init__(self, backend: Backend, context: int) -> None:
        self.context = min(context, backend.context)
        self.cut = False
        self._backend = backend
        self._history: list[dict[str, str]] = []

    def ask(self, question: str, tokens: int) -> Iterator[str]:
        """The answer in pieces, at most ``tokens`` tokens; ``cut`` says whether the context ended it.

        UsageError (E-CONTEXT) when the conversation leaves no room for an answer; RefusedInput: E-EVAL-NAN, E-CHAT-*,
        E-TEMPLATE-*.
        """
        said = [*self._history, {"role": "user", "content": question}]
        ids = self._backend.question(self._row(said))
        room = self.context - len(ids)
        if room < 1:
            what = f"the conversation has {len(ids)} tokens and the context is {self.context}"
            raise UsageError("E-CONTEXT", what, hint="ask again in a new run, or give a larger --context")
        words = Words(self._backend, ids)
        answer, count = "", 0
        for token in generate(self._backend, ids, min(tokens, room)):
            count += 1
            piece = words.add(token)
            answer += piece
            yield piece
        rest = words.rest()
        self._history = [*said, {"role": "assistant", "content": answer + rest}]
        self.cut = count == room < tokens
        yield rest

    def _row(self, said: Sequence[dict[str, str]]) -> dict[str, object]:
        if self._backend.template.source is None:
            return {"prompt": said[-1]["content"], "completion": ""}
        return {"messages": [*said, {"role": "assistant", "content": ""}]}


def generate(backend: Backend, ids: Sequence[int], most: int) -> Iterator[int]:
    """The tokens of an answer, at most ``most``, until the model ends it; the token that does is left out."""
    said: list[int] = []
    row = backend.prefill(ids)
    while not backend.ends(token := pick(row, said[-_LATELY:])):
        said.append(token)
        yield token
        if len(said) == most:
            return
        row = backend.step(token)


def pick(row: Next, lately: Sequence[int]) -> int:
    """The likeliest token, after what was said lately lost a tenth. RefusedInput (E-EVAL-NAN) where none is likely.

    The penalty is the one of https://arxiv.org/abs/1909.05858, as llama.cpp has it: a positive logit is divided by it
    and a negative one multiplied.
    """
    row = row.copy()
    found = sorted(set(lately))
    row[found] = np.where(row[found] > 0, row[found] / _PENALTY, row[found] * _PENALTY)
    token = likeliest(row)
    if not np.isfinite(row[token]):
        raise not_finite()
    return token


class Words:
    """The text of tokens that come one by one: what is not yet a whole character waits for the next.

    A token's text may depend on those before it (a space at the start of a word), so each is read together with some.
    """

    def __init__(self, backend: Backend, prompt: Sequence[int]) -> None:
        self._backend = backend
        self._ids = list(prompt[-_CONTEXT:])
        self._from, self._shown = 0, len(self._ids)

    def add(self, token: int) -> str:
        """What another token adds to the text that can be shown."""
        self._ids.append(token)
        piece = self._more()
        return "" if piece.endswith(_UNFINISHED) else self._show(piece)

    def rest(self) -> str:
        """What the last tokens leave, although it is no whole character."""
        return self._show(self._more())

    def _more(self) -> str:
        text = self._backend.text
        return text(self._ids[self._from :])[len(text(self._ids[self._from : self._shown])) :]

    def _show(self, piece: str) -> str:
        if piece:
            self._from, self._shown = self._shown, len(self._ids)
        return piece
