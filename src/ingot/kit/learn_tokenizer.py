"""Learn a byte-level BPE vocabulary from the rows of a data set, and write it as a Hugging Face tokenizer.

Every byte has a token, so that every text has ids and no token stands for the unknown. The library counts words in any
order and on any number of threads, but merges the commonest pair first and of equals the one of the smallest ids: equal
texts give equal merges. The folder is written as that of a GGUF's tokenizer is (``kit.gguf.tokenizer``), by a rule of
splitting that llama.cpp has under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ingot.errors import RefusedInput, StageFailed
from ingot.kit import chat
from ingot.kit.gguf.pretokenizers import Rule, rule_named
from ingot.kit.gguf.sentencepiece import CONTROL, NORMAL
from ingot.kit.gguf.tokenizer import pre_tokenizer, write_tokenizer

BEGIN, TEXT_END, TURN, TURN_END = "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"

#: ChatML after a begin token: turns between two marks, each with the name of who speaks.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Plan:
    """What to learn: ``size`` tokens at most, of pairs seen ``least`` times, in words that ``rule`` cuts.

    With ``chats`` a turn's end token ends a text too, else the token of the end of a text does; ``further`` are special
    tokens of the user's own.
    """

    size: int
    least: int
    rule: str
    chats: bool
    further: tuple[str, ...] = ()

    @property
    def special(self) -> tuple[str, ...]:
        """The special tokens, first in the vocabulary."""
        return (BEGIN, TEXT_END, *((TURN, TURN_END) if self.chats else ()), *self.further)

    @property
    def end(self) -> str:
        """The token that ends an answer."""
        return TURN_END if self.chats else TEXT_END

    @property
    def template(self) -> chat.Template:
        """What renders a row."""
        return chat.Template(CHATML if self.chats else None, BEGIN, self.end)


def texts_of(rows: Iterable[chat.Row], plan: Plan) -> Iterator[str]:
    """What stands between special tokens in the rows as a model reads them: nothing is merged across one.

    RefusedInput (E-CHAT-TEMPLATE) for chat rows where the plan has no chat template.
    """
    for row in rows:
        yield from between(chat.render(row, plan.template)[1], plan.special)


def between(text: str, special: Sequence[str]) -> Iterator[str]:
    """The pieces of a text around the special tokens in it, without the empty ones."""
    pieces = [text]
    for token in special:
        pieces = [part for piece in pieces for part in piece.split(token)]
    return filter(None, pieces)


def learn(texts: Iterable[str], plan: Plan) -> Tokenizer:
    """The learned vocabulary and merges, special tokens first. RefusedInput (E-DATASET-EMPTY) without a text."""
    rule = _rule(plan)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.size,
        min_frequency=plan.least,
        special_tokens=list(plan.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise RefusedInput(
            "E-DATASET-EMPTY",
            "the data set has no text to learn a tokenizer from",
            facts=["train.jsonl holds no row with a text"],
            hint="loosen the filters or the split of the data set",
        )
    return tokenizer


def _rule(plan: Plan) -> Rule:
    rule = rule_named(plan.rule)
    assert rule is not None, "the parameter takes names of rules only"
    return rule


def write(tokenizer: Tokenizer, plan: Plan, out: Path) -> int:
    """Write the folder; returns how many merges it has."""
    model = json.loads(tokenizer.to_str())["model"]
    vocab: Mapping[str, int] = model["vocab"]
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": plan.rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in plan.special else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": vocab[BEGIN],
        "tokenizer.ggml.eos_token_id": vocab[plan.end],
        "tokenizer.ggml.padding_token_id": vocab[TEXT_END],
        "tokenizer.ggml.add_bos_token": True,
        **({"tokenizer.chat_template": CHATML} if plan.chats else {}),
    }
    write_tokenizer(fields, out, max_length=None)
    return len(merges)


@dataclass(frozen=True)
class Read:
    """A held-out document through the tokenizer: the bytes of its texts and their tokens."""

    bytes: int
    tokens: int


def read_back(tokenizer: Any, texts: Iterable[str]) -> Read:
    """Tokenize and decode texts. StageFailed (E-TOKENIZER-LOSSY) when one does not come back as it was."""
    size = tokens = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if (back := tokenizer.decode(ids)) != text:
            place = next((at for at, pair in enumerate(zip(text, back, strict=False)) if pair[0] != pair[1]), 0)
            raise StageFailed(
                "E-TOKENIZER-LOSSY",
                "a held-out text does not come back from its tokens",
                facts=[f"{text[place : place + 40]!r} came back as {back[place : place + 40]!r}"],
            )
        size, tokens = size + len(text.encode()), tokens + len(ids)
    return Read(size, tokens)
