"""A model whose tokens are bytes and which says what it is told, for tests of what is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ingot.kit.backends import Next
from ingot.kit.chat import Example, Row, Template

END = 256


class ByteTokens:
    """What backends share whose tokens are bytes and the end, and which only answer."""

    def encode(self, row: Row, max_length: int) -> Example:
        raise NotImplementedError

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        raise NotImplementedError

    def ends(self, token: int) -> bool:
        return token == END

    def text(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < END).decode("utf-8", "replace")


class Bytes(ByteTokens):
    """A backend whose tokens are bytes; each is followed by what a table says, with its chances."""

    container, precision, parameters, bytes, runtime = "bytes", "", 1, 1, "bytes"

    def __init__(self, says: str = "", *, context: int = 1000, chances: Mapping[int, float] | None = None) -> None:
        self.says, self.context, self.chances = says, context, chances
        self.template = Template(None)
        self.left: list[int] = []
        self.read = 0

    def question(self, row: Row) -> list[int]:
        return list(row["prompt"].encode())

    def prefill(self, ids: Sequence[int]) -> Next:
        self.left = [*self.says.encode(), END]
        return self.step(ids[-1])

    def step(self, token: int) -> Next:
        del token
        self.read += 1
        if self.chances is not None:
            row = np.full(END + 1, -np.inf, np.float32)
            row[list(self.chances)] = np.log(list(self.chances.values()))
            return row
        row = np.zeros(END + 1, np.float32)
        row[self.left.pop(0)] = 9
        return row
