"""``tokenizer``: a data set → a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Format, Given, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.learn_tokenizer import Plan, Read

#: Special tokens that every tokenizer has, and those that a chat template adds.
_ALWAYS, _CHAT = ("<|startoftext|>", "<|endoftext|>"), ("<|im_start|>", "<|im_end|>")
_BYTES = 256


class Tokenizer(Stage):
    """Learn byte-level BPE from the training rows as a model will read them.

    The vocabulary is the special tokens, the 256 bytes, then merges, the commonest pair first, until ``vocab_size``
    or until no pair is left that occurs ``min_frequency`` times. Any text comes back from its tokens byte for byte;
    every held-out row is tried. transformers, and a GGUF in llama.cpp, give the same ids.
    """

    kind: ClassVar[str] = "tokenizer"
    produces: ClassVar[Format] = "tokenizer"
    inputs: ClassVar[Mapping[str, Role]] = {"data": Role(accepts=("dataset",))}
    tools: ClassVar[tuple[str, ...]] = ("tokenizers", "jinja2")
    needs: ClassVar[tuple[str, ...]] = ("numpy", "safetensors", "torch", "transformers")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("vocabulary", "tokens"),
        Measure("merges", "1"),
        Measure("bytes_per_token", "B/token", "with held-out documents"),
        Measure("documents_read_back", "documents", "with held-out documents"),
    )

    vocab_size: int = Field(default=8192, ge=_BYTES + 2, le=1 << 20, description="The most tokens, all kinds together")
    min_frequency: int = Field(default=2, ge=1, description="How often a pair must occur to become a token")
    split: Literal["smollm", "gpt-2", "llama-bpe", "qwen2"] = Field(
        default="smollm", description="How text is cut into words before merging; llama.cpp's name of the rule"
    )
    chat_template: Literal["chatml", "none"] = Field(
        default="chatml", description="How chats are written; without one, only texts and completions can be learned"
    )
    special_tokens: tuple[str, ...] = Field(default=(), description="Further special tokens, first in the vocabulary")

    @model_validator(mode="after")
    def _check(self) -> Tokenizer:
        special = (*_ALWAYS, *(_CHAT if self.chat_template == "chatml" else ()), *self.special_tokens)
        for token in self.special_tokens:
            if not token.strip() or special.count(token) > 1:
                raise ValueError(f"special_tokens: {token!r} is empty or named twice")
        if self.vocab_size < _BYTES + len(special):
            raise ValueError(f"vocab_size must hold 256 bytes and {len(special)} special tokens")
        return self

    def run(self, given: Given, out: Path, progress: Progress) -> Mapping[str, Metric]:
        """Learn; see the class.

        RefusedInput: E-DATASET-EMPTY, E-CHAT-TEMPLATE for chat rows with ``chat_template: none``. StageFailed:
        E-TOKENIZER-LOSSY.
        """
        from ingot.kit import chat, hf, learn_tokenizer

        folder, plan = given.one("data"), self._plan()

        def texts() -> Iterator[str]:
            for number, row in enumerate(chat.read_rows(folder, "train"), 1):
                yield from learn_tokenizer.texts_of([row], plan)
                if number % 1000 == 0:
                    progress(number, None, "documents")

        progress.phase("learn")
        learned = learn_tokenizer.learn(texts(), plan)
        merges = learn_tokenizer.write(learned, plan, out)
        progress.phase("read back")
        tokenizer = hf.load_lone_tokenizer(out)
        rows = chat.read_rows(folder, "eval")
        read = [learn_tokenizer.read_back(tokenizer, learn_tokenizer.texts_of([row], plan)) for row in rows]
        return _metrics(learned.get_vocab_size(), merges, read)

    def _plan(self) -> Plan:
        from ingot.kit.learn_tokenizer import Plan

        return Plan(
            self.vocab_size, self.min_frequency, self.split, self.chat_template == "chatml", self.special_tokens
        )


def _metrics(size: int, merges: int, read: list[Read]) -> dict[str, Metric]:
    found = {
        "vocabulary": Metric(size, "tokens", "tokens of the vocabulary, special ones included"),
        "merges": Metric(merges, "1", "merges learned"),
    }
    tokens = sum(one.tokens for one in read)
    if tokens:
        from ingot.kit.bootstrap import RESAMPLES, ratio_interval

        found["bytes_per_token"] = Metric(
            sum(one.bytes for one in read) / tokens,
            "B/token",
            "held-out documents without their special tokens; interval by bootstrap over documents, "
            f"{RESAMPLES} resamples",
            n=tokens,
            interval=ratio_interval([one.bytes for one in read], [one.tokens for one in read], RESAMPLES),
        )
        found["documents_read_back"] = Metric(len(read), "documents", "held-out documents equal after decoding")
    return found
