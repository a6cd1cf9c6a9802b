"""What the backends of exports share that carry a contract and a tokenizer beside the model: their texts and limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ingot.kit import chat, hf
from ingot.kit.contract import Contract


class Exported:
    """The half of a ``Backend`` that an export's contract and tokenizer answer; what runs it is the subclass's."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        self.contract = contract
        self.precision, self.context = contract.precision, contract.context
        self.tokenizer = hf.load_lone_tokenizer(folder)
        self.template = chat.Template.of(self.tokenizer)

    def encode(self, row: chat.Row, max_length: int) -> chat.Example:
        """The row's token ids by the tokenizer beside the model."""
        return chat.encode(self.tokenizer, row, max_length=max_length)

    def question(self, row: chat.Row) -> list[int]:
        """Token ids of a row's prompt by the tokenizer beside the model."""
        return chat.encode_prompt(self.tokenizer, row)

    def ends(self, token: int) -> bool:
        """Whether the contract names this token as an end."""
        return token in self.contract.tokenizer.end_tokens

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
