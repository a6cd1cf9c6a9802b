"""What the backends of exports share that carry a contract and a tokenizer beside the model: their texts and limits."""

from __future__ import annotations

from pathlib import Path

from ingot.kit import hf
from ingot.kit.backends.words import Words
from ingot.kit.contract import Contract


class Exported(Words):
    """The half of a ``Backend`` that an export's contract and tokenizer answer; what runs it is the subclass's."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        self.contract = contract
        self.precision, self.context = contract.precision, contract.context
        super().__init__(hf.load_lone_tokenizer(folder))

    def ends(self, token: int) -> bool:
        """Whether the contract names this token as an end."""
        return token in self.contract.tokenizer.end_tokens
