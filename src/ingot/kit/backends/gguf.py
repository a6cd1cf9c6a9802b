"""GGUF files, run by llama.cpp with its own tokenizer and the chat template of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import LlamaFileType

from ingot.kit import chat
from ingot.kit.backends import SEGMENT, Next, Piece, segments
from ingot.kit.gguf.reader import Gguf, parts_of, read_gguf
from ingot.kit.llama_cpp import Model

if TYPE_CHECKING:
    import torch


#: What is read in one go: as many tokens as llama.cpp computes at once, of as many texts at the most.
_TOGETHER, _TEXTS = 512, 32


class _Runner(Model):
    """llama.cpp with one text that grows: emptied by ``forget``, read on by ``read``."""

    def read(self, ids: Sequence[int], kept: range) -> npt.NDArray[np.float32]:
        """Append at most ``step`` tokens; the logits of the kept ones (at least one)."""
        return self._decode(ids, kept)


class GgufBackend:
    """A GGUF in llama.cpp on the CPU, with the settings that its users get (a KV cache in F16)."""

    container = "gguf"
    runtime = "llama.cpp on the CPU"

    def __init__(self, path: Path, *, context: int, threads: int) -> None:
        parts = parts_of(path)
        self.precision = precision(read_gguf(path))
        self.bytes = sum(part.stat().st_size for part in parts)
        self.parameters = sum(tensor.elements for part in parts for tensor in read_gguf(part).tensors)
        self._model = _Runner(path, context=max(context, _TOGETHER), threads=threads, sequences=_TEXTS)
        self.context = self._model.trained_context
        self.template = self._model.template
        self.begin = self._model.begin
        self._pieces: dict[int, Piece] = {}

    @property
    def model(self) -> Model:
        """The open file."""
        return self._model

    def encode(self, row: chat.Row, max_length: int) -> chat.Example:
        """The row's token ids by llama.cpp's tokenizer, of the text that the file's template renders."""
        prompt, full = chat.render(row, self.template)
        begin = chat.special_tokens(row)
        return chat.encode_with(lambda text: self._model.tokenize(text, bos=begin), prompt, full, max_length=max_length)

    def question(self, row: chat.Row) -> list[int]:
        """Token ids of a row's prompt by llama.cpp's tokenizer."""
        return self._model.tokenize(chat.prompt_of(row, self.template), bos=chat.special_tokens(row))

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return self._model.ends_turn(token)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._model.text(ids)

    @property
    def edges(self) -> tuple[int | None, int | None]:
        """The ids of the file's begin and end token; None where it has none."""
        return self._model.edges

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; with ``special`` those that the file says to add around one, too."""
        return self._model.tokenize(text, bos=special)

    def spell(self, ids: Sequence[int]) -> str:
        """The text of token ids, that of special tokens too."""
        return self._model.text(ids, special=True)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
        """Logits that predict ``ids[first:]``; only those positions go through the output layer."""
        import torch

        self._model.forget()
        for start, stop, kept in segments(len(ids), first):
            last = range(stop - start - 1, stop - start)
            rows = self._model.read(ids[start:stop], kept or last)
            if kept:
                yield torch.from_numpy(rows)

    def logits_of(self, examples: Iterable[chat.Example]) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of what is scored in each example; short texts are read together."""
        import torch

        for numbers, texts in self._packed(examples):
            if len(texts[0].ids) - 1 > self._model.step:
                for rows in self.logits(texts[0].ids, texts[0].labels_from):
                    yield numbers[0], rows
                continue
            read = [(text.ids[:-1], range(text.labels_from - 1, len(text.ids) - 1)) for text in texts]
            yield from zip(numbers, map(torch.from_numpy, self._model.together(read)), strict=True)

    def _packed(self, examples: Iterable[chat.Example]) -> Iterator[tuple[list[int], list[chat.Example]]]:
        """Examples with their numbers, as many as can be read together; a longer one alone."""
        numbers: list[int] = []
        texts: list[chat.Example] = []
        for number, example in enumerate(examples):
            size = sum(len(text.ids) - 1 for text in texts) + len(example.ids) - 1
            if texts and (size > self._model.step or len(texts) == self._model.sequences):
                yield numbers, texts
                numbers, texts = [], []
            numbers, texts = [*numbers, number], [*texts, example]
        if texts:
            yield numbers, texts

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text: nothing put around it, the markup of special tokens read as text."""
        return self._model.tokenize(text, special=False)

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """What each token is as text."""
        for token in {*ids} - {*self._pieces}:
            whole, shown = (self._model.piece(token, special=special) for special in (True, False))
            self._pieces[token] = Piece(len(whole), bool(whole) and not shown)
        return [self._pieces[token] for token in ids]

    def prefill(self, ids: Sequence[int]) -> Next:
        """Read a prompt, at least one token, into an empty cache; the logits of the next token."""
        self._model.forget()
        parts = [ids[start : start + SEGMENT] for start in range(0, len(ids), SEGMENT)]
        return [self._model.read(part, range(len(part) - 1, len(part))) for part in parts][-1].reshape(-1)

    def resumed(self, ids: Sequence[int], kept: int, first: int) -> Iterator[torch.Tensor]:
        """Logits that follow ``ids[first:]``; the first ``kept`` ids, those that were read last, are not read again."""
        import torch

        for start in range(self._model.keep(kept), len(ids), SEGMENT):
            part = ids[start : start + SEGMENT]
            wanted = range(max(first - start, 0), len(part))
            found = self._model.read(part, wanted or range(len(part) - 1, len(part)))
            if wanted:
                yield torch.from_numpy(found)

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one."""
        return self._model.read([token], range(1)).reshape(-1)


def precision(facts: Gguf) -> str:
    """The file's own name of its types (``Q4_K_M``), or the tensor type that holds the most bytes."""
    number = facts.metadata.get("general.file_type")
    known = {int(kind): str(kind.name).removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    if number in known:
        return known[number]
    sizes: Counter[str] = Counter()
    for tensor in facts.tensors:
        sizes[tensor.type] += tensor.size
    return max(sorted(sizes), key=sizes.__getitem__, default="")
