"""What tests of function calling share: two functions, files of rows, and a backend that says what it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bytekit import END, ByteTokens
from ingot.kit.backends import Next
from ingot.kit.chat import Row, Template
from tinymodels import TEMPLATE

WEATHER = {
    "name": "weather",
    "description": "The weather.",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
MAIL = {
    "name": "mail",
    "description": "Send a mail.",
    "parameters": {
        "type": "dict",
        "properties": {"to": {"type": "string"}, "text": {"type": "string"}},
        "required": ["to"],
    },
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


class Scripted(ByteTokens):
    """A backend whose tokens are bytes. It answers a conversation by its last message and by what it said before."""

    container, precision, parameters, bytes, runtime = "scripted", "", 1, 1, "scripted"

    def __init__(self, says: Callable[[str], str], context: int = 1 << 20) -> None:
        self.says, self.context, self.template = says, context, Template(TEMPLATE)
        self.prompts: list[str] = []
        self.left: list[int] = []

    def question(self, row: Row) -> list[int]:
        return list(self.template.apply(row["messages"][:-1], add_generation_prompt=True).encode())

    def prefill(self, ids: Sequence[int]) -> Next:
        self.prompts.append(self.text(ids))
        self.left = [*self.says(self.prompts[-1]).encode(), END]
        return self.step(0)

    def step(self, token: int) -> Next:
        del token
        row = np.zeros(END + 1, np.float32)
        row[self.left.pop(0)] = 1
        return row
