"""Text and tokens as the harness's own class for Hugging Face models has them, for the tokenizer of any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ingot.kit.backends import Backend


class Tokens(Protocol):
    """A tokenizer. ``begin`` and ``end`` are the ids of its tokens, None where it has none."""

    begin: int | None
    end: int | None
    begin_text: str

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; with ``special`` those that the tokenizer adds around a text too."""
        ...

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """The text of token ids; with ``special`` that of special tokens too."""
        ...


class _Transformers:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.begin_text = tokenizer.bos_token or ""

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))


class _LlamaCpp:
    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.begin, self.end = backend.edges
        self.begin_text = backend.template.bos

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._backend.tokenize(text, special=special))

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        return str(self._backend.spell(ids) if special else self._backend.text(ids))


def tokens_of(backend: Backend) -> Tokens:
    """The tokenizer of a backend: transformers' beside the model, or llama.cpp's in the file."""
    tokenizer = getattr(backend, "tokenizer", None)
    return _LlamaCpp(backend) if tokenizer is None else _Transformers(tokenizer)
