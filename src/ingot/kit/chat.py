"""Rows of a data set as text and as token ids: the one place where training and evaluation get them.

A row is ``{"messages": […]}`` (chat), ``{"prompt", "completion"}`` (completion) or ``{"text"}`` (text). A preference is
``{"messages" or "prompt", "chosen", "rejected"}``; read as a text to learn or to score it is what was chosen. A chat
row may hold ``tools``, the functions that its template tells of. Its full text is tokenized once, as llama.cpp would
tokenize the same text; what is learned and scored is what follows the tokens that the full text shares with the
prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.render import Renderer

Row = Mapping[str, Any]

_RENDERER = Renderer()


@dataclass(frozen=True)
class Template:
    """A chat template with the two tokens it may name; ``source`` None when the model has none."""

    source: str | None
    bos: str = ""
    eos: str = ""

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """The template of a transformers tokenizer."""
        source = tokenizer.get_chat_template() if tokenizer.chat_template else None
        return cls(source, tokenizer.bos_token or "", tokenizer.eos_token or "")

    @property
    def takes_tools(self) -> bool:
        """Whether it tells a model of functions that it can call: it speaks of ``tools``."""
        return re.search(r"\btools\b", self.source or "") is not None

    def apply(self, messages: Sequence[Row], *, add_generation_prompt: bool = False, tools: Sequence[Row] = ()) -> str:
        """The text of a conversation, as transformers' ``apply_chat_template(tokenize=False)`` renders it.

        ``tools`` are functions that the model can call, as their JSON schemas; a template is told of none where there
        are none.

        RefusedInput: E-CHAT-TEMPLATE without a template, E-CHAT-RENDER when the template refuses the messages,
        E-TEMPLATE-UNSAFE and E-TEMPLATE-LIMIT when it tries what none may, or takes too much (``kit.render``).
        """
        if self.source is None:
            raise RefusedInput(
                "E-CHAT-TEMPLATE",
                "the model has no chat template, so chat rows cannot be rendered",
                hint="use an instruct model, or 'form: completion' in the data set",
            )
        variables = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos,
            "eos_token": self.eos,
            **({"tools": list(tools)} if tools else {}),
        }
        return _RENDERER.render(self.source, variables)


def answered(row: Row, which: str = "chosen") -> Row:
    """A preference as the row that gives one of its answers; any other row as it is."""
    if "chosen" not in row:
        return row
    if "messages" in row:
        return {"messages": [*row["messages"], {"role": "assistant", "content": row[which]}]}
    return {"prompt": row["prompt"], "completion": row[which]}


def render(row: Row, template: Template) -> tuple[str, str]:
    """(prompt, full text) of a row. The completion is the last assistant turn with its end token.

    In the text form the prompt is empty. The texts of chat rows hold their begin token where the template has one;
    the others leave it to the tokenizer (``special_tokens``).
    """
    row = answered(row)
    if "messages" in row:
        return prompt_of(row, template), template.apply(row["messages"], tools=row.get("tools", ()))
    if "prompt" in row:
        return row["prompt"], f"{row['prompt']}{row['completion']}{template.eos}"
    return "", row["text"]


def prompt_of(row: Row, template: Template) -> str:
    """The text of what a row asks: in chat rows all but the last turn, whatever that one says."""
    row = answered(row)
    if "messages" in row:
        return template.apply(row["messages"][:-1], add_generation_prompt=True, tools=row.get("tools", ()))
    return str(row.get("prompt", ""))


def wanted_text(row: Row) -> str:
    """The answer that a row of prompts and completions or of chats gives."""
    row = answered(row)
    return str(row["messages"][-1]["content"] if "messages" in row else row["completion"])


def special_tokens(row: Row) -> bool:
    """Whether the tokenizer adds its begin token to a row's text: chat templates write it themselves."""
    return "messages" not in row


@dataclass(frozen=True)
class Example:
    """Token ids of a row; ``ids[labels_from:]`` are learned and scored (none where the prompt was cut)."""

    ids: list[int]
    labels_from: int

    @property
    def scored(self) -> int:
        """How many tokens are learned or scored."""
        return max(0, len(self.ids) - self.labels_from)


def encode_with(tokenize: Callable[[str], list[int]], prompt: str, full: str, *, max_length: int) -> Example:
    """Token ids of a rendered row with any tokenizer; ids beyond ``max_length`` are cut.

    Labels begin where the tokens of the full text stop agreeing with those of the prompt, and never at the first
    token, which nothing predicts.
    """
    ids = tokenize(full)
    shared = 0
    for left, right in zip(tokenize(prompt) if prompt else [], ids, strict=False):
        if left != right:
            break
        shared += 1
    return Example(ids[:max_length], max(1, shared))


def encode(tokenizer: Any, row: Row, *, max_length: int) -> Example:
    """Token ids of a row with a transformers tokenizer; see ``encode_with``."""
    prompt, full = render(row, Template.of(tokenizer))
    tokenize = _tokenize(tokenizer, row)
    if "prompt" in row and tokenizer.eos_token_id is not None:
        # a tokenizer that adds its own end token would put one after the prompt, too
        full = full.removesuffix(tokenizer.eos_token or "")
        example = encode_with(lambda text: _without_end(tokenize(text), tokenizer), prompt, full, max_length=1 << 40)
        return Example([*example.ids, tokenizer.eos_token_id][:max_length], example.labels_from)
    return encode_with(tokenize, prompt, full, max_length=max_length)


def encode_prompt(tokenizer: Any, row: Row) -> list[int]:
    """Token ids of what a row asks, ready to be answered."""
    return _without_end(_tokenize(tokenizer, row)(prompt_of(row, Template.of(tokenizer))), tokenizer)


def _tokenize(tokenizer: Any, row: Row) -> Callable[[str], list[int]]:
    def tokenize(text: str) -> list[int]:
        # verbose: transformers warns of texts beyond the context, which are cut or refused here.
        ids: list[int] = tokenizer(text, add_special_tokens=special_tokens(row), verbose=False)["input_ids"]
        return ids

    return tokenize


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def read_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of ``train`` or ``eval`` of a data set artifact, in order. RefusedInput (E-NOT-DATASET) if none."""
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise RefusedInput("E-NOT-DATASET", f"the folder holds no {split}.jsonl, so it is not a data set of ingot")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RefusedInput("E-NOT-DATASET", f"{path.name} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not {"messages", "prompt", "text"} & set(row):
                raise RefusedInput("E-NOT-DATASET", f"{path.name} line {number} is not a row")
            yield row
