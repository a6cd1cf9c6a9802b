"""What a transformers tokenizer says of rows, texts and tokens: the half of a ``Backend`` that runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ingot.kit import chat
from ingot.kit.backends import Piece

if TYPE_CHECKING:
    import torch

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Words:
    """Texts and tokens of a backend whose tokenizer is transformers'; each text is read by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = chat.Template.of(tokenizer)
        self.begin = _begin(tokenizer)
        self._special = {
            *tokenizer.all_special_ids,
            *(number for number, token in tokenizer.added_tokens_decoder.items() if token.special),
        }
        self._byte_level = _byte_level(tokenizer)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """See ``Backend.logits``: what runs the model says it."""
        raise NotImplementedError

    def logits_of(self, examples: Iterable[chat.Example]) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of what is scored in each example, one text after the other."""
        for number, example in enumerate(examples):
            for rows in self.logits(example.ids, example.labels_from):
                yield number, rows

    def encode(self, row: chat.Row, max_length: int) -> chat.Example:
        """The row's token ids by the tokenizer and its template."""
        return chat.encode(self.tokenizer, row, max_length=max_length)

    def question(self, row: chat.Row) -> list[int]:
        """Token ids of a row's prompt by the tokenizer and its template."""
        return chat.encode_prompt(self.tokenizer, row)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text: nothing put around it, the markup of special tokens read as text."""
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [int(token) for token in found]

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """What each token is as text."""
        texts = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [Piece(self._size(token, text), token in self._special) for token, text in zip(ids, texts, strict=True)]

    def _size(self, token: int, text: str) -> int:
        if token in self.tokenizer.added_tokens_decoder:
            return len(text.encode("utf-8"))
        if self._byte_level:
            return len(text)  # a character stands for a byte
        return 1 if _BYTE.fullmatch(text) else len(text.replace("\u2581", " ").encode("utf-8"))


def _begin(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before a text."""
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return None if whole[: len(plain)] == plain else int(whole[0])


def _byte_level(tokenizer: Any) -> bool:
    """Whether the tokenizer's tokens are written with a character for each byte (GPT-2's way)."""
    decoder = tokenizer.backend_tokenizer.decoder
    found = {} if decoder is None else json.loads(decoder.__getstate__())
    kinds = [part.get("type") for part in (found, *found.get("decoders", ()))]
    return "ByteLevel" in kinds
