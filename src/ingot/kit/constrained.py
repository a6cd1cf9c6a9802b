"""Decoding held to a JSON schema, for any backend: masks over its tokens, computed by llguidance.

Law. What is generated under a mask is JSON that fits the schema as soon as the answer ended by itself; one that ended
by a limit is the beginning of such JSON. llguidance knows the vocabulary of the model: from its tokenizer.json or, of a
GGUF, from the file's own. A token that ends an answer is allowed where the JSON is complete, and only there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import numpy.typing as npt
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from ingot.errors import RefusedInput
from ingot.kit.backends import Backend
from ingot.kit.generate import Allowed

if TYPE_CHECKING:
    from ingot.kit.llama_cpp import Model

#: No white space between the parts of the JSON: a model that cannot write any cannot write it for ever.
_OPTIONS: Any = {"whitespace_flexible": False}


class Vocabulary:
    """The tokens of a backend as llguidance takes them; made once for a model, since it reads every token."""

    def __init__(self, backend: Backend) -> None:
        """RefusedInput (E-CONSTRAINED-TOKENS) where no token of the model ends an answer, or nobody knows them."""
        try:
            tokens = _of_gguf(backend) if backend.container == "gguf" else _of_tokenizer(backend)
        except ValueError as error:
            raise _no_vocabulary(str(error)) from error
        self._tokens = (
            tokens
            if _keeps_spaces(tokens)
            else llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Greedy(tokens)), eos_token=list(tokens.eos_tokens))
        )

    def json(self, schema: Mapping[str, Any], what: str = "the schema") -> Allowed:
        """The mask of one answer that is JSON of a schema; each answer needs its own.

        RefusedInput (E-SCHEMA) where llguidance does not take the schema.
        """
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        except ValueError as error:
            raise _no_schema(what, str(error)) from error
        return _Mask(self._tokens, grammar, what)

    def one_of(self, texts: Sequence[str]) -> Allowed:
        """The mask of one answer that is one of some texts."""
        choices = " | ".join(json.dumps(text) for text in texts)
        return _Mask(self._tokens, llguidance.LLMatcher.grammar_from_lark(f"start: {choices}"), "the choice of texts")


class _Mask:
    """Follows one answer: each call is given all its tokens so far."""

    def __init__(self, tokens: llguidance.LLTokenizer, grammar: str, what: str) -> None:
        self._matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
        if self._matcher.is_error():
            raise _no_schema(what, self._matcher.get_error())
        self._width, self._what, self._read = tokens.vocab_size, what, 0
        self._bits = allocate_token_bitmask(1, tokens.vocab_size)

    def __call__(self, tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which tokens may follow. RefusedInput (E-SCHEMA) where the schema became too much for llguidance."""
        self._matcher.consume_tokens(list(tokens[self._read :]))
        self._read = len(tokens)
        if self._matcher.is_error():
            raise _no_schema(self._what, self._matcher.get_error())
        fill_next_token_bitmask(self._matcher, self._bits)
        found = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return found[: self._width].astype(np.bool_)


class _Greedy:
    """The same tokens, a text always read by the longest of them: what llguidance wants of a tokenizer, no more."""

    bos_token_id = None

    def __init__(self, tokens: llguidance.LLTokenizer) -> None:
        self.eos_token_id, self._tokens = tokens.eos_token, tokens
        self.tokens = [tokens.decode_bytes([token]) for token in range(tokens.vocab_size)]
        self.special_token_ids = [token for token in range(tokens.vocab_size) if tokens.is_special_token(token)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokens.greedy_tokenize(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _keeps_spaces(tokens: llguidance.LLTokenizer) -> bool:
    """Whether a text is the bytes of its tokens. Where it is not (a space is put before each text, or taken away),
    llguidance's masks would allow what the schema does not."""
    return all(tokens.decode_bytes(tokens.tokenize_str(text)) == text.encode() for text in (" ", " a", "a ", "  a"))


def _of_tokenizer(backend: Backend) -> llguidance.LLTokenizer:
    tokenizer = getattr(getattr(backend, "tokenizer", None), "backend_tokenizer", None)
    if tokenizer is None:
        raise _no_vocabulary("it has no tokenizer.json")
    tokenizer = copy(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ends = _ends(backend, tokenizer.get_vocab_size(with_added_tokens=True))
    return llguidance.LLTokenizer(tokenizer.to_str(), eos_token=ends)


class _OfGguf:
    """The vocabulary of a GGUF, as its model has it."""

    bos_token_id = None

    def __init__(self, model: Model, ends: Sequence[int]) -> None:
        self.eos_token_id, self._model = ends[0], model
        pieces = [model.piece(token) for token in range(model.vocabulary)]
        self.tokens = [piece for piece, _ in pieces]
        self.special_token_ids = [token for token, (_, special) in enumerate(pieces) if special]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._model.tokenize(text, special=False)


def _of_gguf(backend: Backend) -> llguidance.LLTokenizer:
    from ingot.kit.backends.gguf import GgufBackend

    assert isinstance(backend, GgufBackend), "only GGUFs have a vocabulary of llama.cpp"
    ends = _ends(backend, backend.model.vocabulary)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_OfGguf(backend.model, ends)), eos_token=ends)


def _ends(backend: Backend, count: int) -> list[int]:
    found = [token for token in range(count) if backend.ends(token)]
    if not found:
        raise _no_vocabulary("none of its tokens ends an answer")
    return found


def _no_vocabulary(why: str) -> RefusedInput:
    return RefusedInput(
        "E-CONSTRAINED-TOKENS",
        f"the model cannot be held to a schema: {why}",
        hint="leave the answers free (decoding: free)",
    )


def _no_schema(what: str, why: str) -> RefusedInput:
    return RefusedInput("E-SCHEMA", f"no answer can be held to {what}: {why.strip().splitlines()[0]}")
