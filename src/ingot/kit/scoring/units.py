"""What is scored: held-out documents one by one, or windows over all of their text.

A unit is a document or a window, and what is drawn when intervals are bootstrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ingot.errors import RefusedInput
from ingot.kit import chat
from ingot.kit.backends import Backend, Scorable
from ingot.kit.chat import Example, Row
from ingot.kit.scoring import widths


@dataclass(frozen=True)
class Unit:
    """What is read, and what of it is scored; ``bytes`` of the text that the scored tokens stand for.

    ``row``: the document's place in the order of ids; of a window the number of the window.
    """

    id: str
    row: int
    example: Example
    bytes: int | None


@dataclass(frozen=True)
class Windows:
    """Windows of ``context`` tokens, one every ``stride``; ``score`` says what of each is scored, ``count`` how many.

    As ``llama-perplexity`` has them with a stride of ``context`` and the second half scored (its ``perplexity``): all
    text tokenized once, markup of special tokens read as text; where the model puts a begin token before a text, that
    stands before the whole text, and in each window in the place of its first token. What does not fill a window is
    left out.
    """

    context: int
    stride: int
    score: str
    count: int | None
    separator: str

    @property
    def scored_from(self) -> int:
        """The first token of a window that is scored."""
        first = {"second_half": self.context // 2 + 1, "all": 1, "stride": self.context - self.stride}
        return max(1, first[self.score])

    def cut(self, ids: Sequence[int], begin: int | None) -> Iterator[Example]:
        """The windows of a text's tokens, the begin token before it included."""
        starts = range(0, len(ids) - self.context + 1, self.stride)
        for start in starts if self.count is None else starts[: self.count]:
            window = list(ids[start : start + self.context])
            if begin is not None:
                window[0] = begin
            yield Example(window, self.scored_from)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of their ids, which follow from their content."""
    return sorted(rows, key=lambda row: str(row.get("id", "")))


def held_out(backend: Backend, rows: Sequence[Row], *, limit: int, max_length: int) -> Iterator[tuple[Row, Example]]:
    """The first ``limit`` rows, in the order of their ids (content), that have at least one token to score.

    A row whose prompt alone fills ``max_length`` has none; so the choice depends on the tokenizer of ``backend``.
    """
    return ((row, example) for _, row, example in _numbered(backend, rows, limit, max_length))


def _numbered(backend: Backend, rows: Sequence[Row], limit: int, max_length: int) -> Iterator[tuple[int, Row, Example]]:
    found = 0
    for number, row in enumerate(in_order(rows)):
        if found == limit:
            return
        example = backend.encode(row, max_length)
        if example.scored:
            found += 1
            yield number, row, example


def documents(backend: Scorable, rows: Sequence[Row], *, limit: int, max_length: int) -> list[Unit]:
    """The held-out documents as units, chosen as ``held_out`` does.

    RefusedInput (E-EVAL-EMPTY) where none has a token to score.
    """
    chosen = _numbered(backend, rows, limit, max_length)
    units = [
        Unit(str(row.get("id", "")), number, example, widths.of_document(backend, row, example))
        for number, row, example in chosen
    ]
    if not units:
        raise RefusedInput(
            "E-EVAL-EMPTY",
            f"none of the {len(rows)} held-out rows has a token to score within {max_length}",
            hint="raise max_length, or the data set's split.eval",
        )
    return units


def windows(backend: Scorable, rows: Sequence[Row], how: Windows) -> list[Unit]:
    """The windows over the rows' text, in the order of their ids.

    RefusedInput: E-EVAL-WINDOWS for rows that are no plain text, E-EVAL-SHORT for less than two windows of text.
    """
    for row in rows:
        if "text" not in chat.answered(row):
            raise RefusedInput(
                "E-EVAL-WINDOWS",
                "windows run over plain text, and the held-out rows are conversations or prompts",
                hint="leave 'windows' out: each row is then scored by itself, after its prompt",
            )
    text = how.separator.join(str(row["text"]) for row in in_order(rows))
    ids = backend.tokens(text)
    counted = widths.of_text(backend, ids, text)
    if backend.begin is not None:
        ids, counted = [backend.begin, *ids], None if counted is None else [0, *counted]
    examples = list(how.cut(ids, backend.begin))
    if len(examples) < 2:
        raise RefusedInput(
            "E-EVAL-SHORT",
            f"the held-out text has {len(ids)} tokens: less than two windows of {how.context}",
            facts=[f"windows begin every {how.stride} tokens"],
            hint="set windows.context to less, or raise the data set's split.eval",
        )
    starts = range(0, len(ids), how.stride)
    return [
        Unit(f"{number:08d}", number, example, _between(counted, start + example.labels_from, start + how.context))
        for number, (start, example) in enumerate(zip(starts, examples, strict=False))
    ]


def _between(counted: Sequence[int] | None, start: int, stop: int) -> int | None:
    return None if counted is None else sum(counted[start:stop])


def check_context(backend: Backend, examples: Iterable[Example]) -> None:
    """Refuse documents longer than the model's context (E-EVAL-CONTEXT): what is scored beyond it means nothing."""
    longest = max(len(example.ids) for example in examples)
    if longest > backend.context:
        raise RefusedInput(
            "E-EVAL-CONTEXT",
            f"a document or a window has {longest} tokens and the model's context is {backend.context}",
            hint=f"set max_length, or windows.context, to {backend.context} or less",
        )
