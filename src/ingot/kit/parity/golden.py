"""Golden texts: the token sequences that a source and its exports are both run on.

They are real ones, of a data set's held-out rows, or of ingot's own probe texts where there is no data set. The same
rows, tokenizer and wishes give the same sequences in every process. A receipt holds their digest, never their text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit import chat
from ingot.kit.parity.probes import PROBES
from ingot.kit.train.documents import row_id

#: Rows whose token ids by the shipped tokenizer are compared with the source's, beside the probe texts.
_ROWS = 32


@dataclass(frozen=True)
class Choice:
    """How many texts, of how many tokens at most, and the lengths that an export has a shape of its own for."""

    texts: int
    max_length: int
    shapes: tuple[int, ...] = ()

    def lengths(self) -> tuple[int, ...]:
        """The lengths of the texts: the longest, one token, a quarter, a sixteenth (both odd), the longest again …

        Each shape that none of them fills is one more. Ascending, so that the short ones fail first.
        """
        longest = self.max_length
        first = [longest, 1, (longest // 4) | 1, (longest // 16) | 1]
        wanted = (first + [longest] * self.texts)[: self.texts]
        return tuple(sorted([*wanted, *sorted(set(self.shapes) - set(wanted))]))


@dataclass(frozen=True)
class Golden:
    """The sequences, what they were cut from, and the texts on which tokenizers are compared (in no receipt)."""

    ids: tuple[tuple[int, ...], ...]
    origin: str
    texts: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Positions that are compared."""
        return sum(len(ids) for ids in self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the sequences as compact JSON: ``[[1,2],[3]]``."""
        return hashlib.sha256(json.dumps(self.ids, separators=(",", ":")).encode()).hexdigest()


def golden(tokenizer: Any, data: Path | None, choice: Choice) -> Golden:
    """Cut the texts that are wanted: from the first held-out rows in the order of their ids, else from the probes.

    A text begins where a row begins, each at the next one, and goes on with the rows after it until it is long enough.
    RefusedInput (E-DATASET-EMPTY) when no held-out row has a token.
    """
    rows = _probe_rows() if data is None else sorted(chat.read_rows(data, "eval"), key=row_id)
    lengths = choice.lengths()
    encoded = list(_encoded(tokenizer, rows, sum(lengths)))
    if not encoded:
        raise RefusedInput(
            "E-DATASET-EMPTY",
            "the data set gives no tokens to compare an export with its source on",
            facts=[f"{len(rows)} held-out rows, none with a token" if rows else "eval.jsonl is empty"],
            hint="raise the data set's split.eval, or leave out the role 'data': then ingot's own texts are used",
        )
    ids = tuple(_cut(encoded, start, length) for start, length in enumerate(lengths))
    template = chat.Template.of(tokenizer)
    texts = () if data is None else tuple(chat.render(row, template)[1] for row in rows[:_ROWS])
    return Golden(ids, "probe texts" if data is None else "held-out rows", texts)


def _probe_rows() -> list[dict[str, str]]:
    return [{"text": probe} for probe in PROBES if probe.strip()]


def _encoded(tokenizer: Any, rows: Sequence[chat.Row], enough: int) -> Iterator[list[int]]:
    """Token ids row by row, no more rows than can be needed (each text begins at another one)."""
    tokens = 0
    for row in rows:
        if tokens > 2 * enough:
            return
        if ids := chat.encode(tokenizer, row, max_length=1 << 30).ids:
            tokens += len(ids)
            yield ids


def _cut(encoded: Sequence[Sequence[int]], start: int, length: int) -> tuple[int, ...]:
    found: list[int] = []
    while len(found) < length:
        found += encoded[start % len(encoded)]
        start += 1
    return tuple(found[:length])
