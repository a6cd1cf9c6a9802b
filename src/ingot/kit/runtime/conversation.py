"""Questions to a model and its answers, token by token, over any backend.

Laws. The next token is the likeliest one, those that the answer has said lately made a little less likely: the same
questions give the same answers. A model with a chat template remembers the conversation; one without is a plain
language model that continues each text anew. Pieces of an answer are whole characters, and together they are the text
of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ingot.errors import UsageError
from ingot.kit.backends import Backend
from ingot.kit.generate import Decoding, Stream

#: llama.cpp's own figure: small models go round in circles otherwise.
_PENALTY = 1.1
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
        answer = ""
        stream = Stream(self._backend, ids, Decoding(min(tokens, room), penalty=_PENALTY))
        for token in stream:
            piece = words.add(token)
            answer += piece
            yield piece
        rest = words.rest()
        self._history = [*said, {"role": "assistant", "content": answer + rest}]
        self.cut = len(stream.tokens) == room < tokens
        yield rest

    def _row(self, said: Sequence[dict[str, str]]) -> dict[str, object]:
        if self._backend.template.source is None:
            return {"prompt": said[-1]["content"], "completion": ""}
        return {"messages": [*said, {"role": "assistant", "content": ""}]}


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
