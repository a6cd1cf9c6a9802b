"""Documents to learn: rows as token ids, in an order that the seed and their content give."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ingot.errors import RefusedInput

Row = Mapping[str, Any]


class Encoded(Protocol):
    """Token ids of a document and the index of the first that is learned."""

    @property
    def ids(self) -> list[int]:
        """Token ids, cut to the length asked for."""

    @property
    def labels_from(self) -> int:
        """Index of the first token that is learned."""


@dataclass(frozen=True)
class Document:
    """One encoded document: the loss is taken on ``ids[start:]``, each predicted from those before it."""

    id: str
    ids: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens the loss looks at."""
        return len(self.ids) - self.start

    @property
    def size(self) -> int:
        """Tokens that a forward pass reads."""
        return len(self.ids)


class Corpus:
    """The rows of a data set in a seeded order, encoded when they are first drawn.

    ``encode`` maps a row to ids. A row that is cut before its completion teaches nothing and is skipped.
    """

    def __init__(self, rows: Sequence[Row], encode: Callable[[Row], Encoded], *, completion_only: bool) -> None:
        self._rows = rows
        self._encode = encode
        self._completion_only = completion_only
        self._known: dict[int, Document | None] = {}

    def _document(self, index: int) -> Document | None:
        if index not in self._known:
            row = self._rows[index]
            found = self._encode(row)
            start = max(1, found.labels_from) if self._completion_only else 1
            doc = Document(row_id(row), tuple(found.ids), start)
            self._known[index] = doc if doc.scored > 0 else None
        return self._known[index]

    def first(self, count: int) -> list[Document]:
        """The first ``count`` usable documents in the order of their ids: the same for every seed."""
        order = sorted(range(len(self._rows)), key=lambda index: row_id(self._rows[index]))
        return list(itertools.islice(filter(None, map(self._document, order)), count))

    def epoch(self, seed: int, number: int) -> Iterator[Document]:
        """All usable documents, permuted by the hash of seed, epoch and id: equal on every machine."""

        def place(index: int) -> bytes:
            return hashlib.sha256(f"{seed}:{number}:{row_id(self._rows[index])}".encode()).digest()

        for index in sorted(range(len(self._rows)), key=place):
            doc = self._document(index)
            if doc is not None:
                yield doc

    def batches(self, seed: int, size: int) -> Iterator[list[Document]]:
        """Batches of ``size`` documents without end, epoch after epoch, each epoch in a new order.

        A batch may cross the end of an epoch, so that every batch is full. Nothing when no row is usable.
        """
        batch: list[Document] = []
        for number in itertools.count():
            drawn = 0
            for doc in self.epoch(seed, number):
                drawn += 1
                batch.append(doc)
                if len(batch) == size:
                    yield batch
                    batch = []
            if not drawn:
                return


def row_id(row: Row) -> str:
    """The id of a row; where it has none, the hash of its content."""
    known = row.get("id")
    return known if isinstance(known, str) else hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def packs_of(docs: Sequence[Document], limit: int) -> Iterator[list[Document]]:
    """Consecutive documents whose tokens sum to at most ``limit`` (a longer one stands alone)."""
    pack: list[Document] = []
    total = 0
    for doc in docs:
        if pack and total + len(doc.ids) > limit:
            yield pack
            pack, total = [], 0
        pack.append(doc)
        total += len(doc.ids)
    if pack:
        yield pack


def nothing_to_learn(rows: int, max_length: int) -> RefusedInput:
    """Why a training set has nothing to learn: E-DATASET-EMPTY, or E-DATASET-LENGTH when all was cut off."""
    if rows == 0:
        return RefusedInput(
            "E-DATASET-EMPTY",
            "the data set has no rows to train on",
            facts=["train.jsonl is empty"],
            hint="loosen the filters or the split of the data set",
        )
    return RefusedInput(
        "E-DATASET-LENGTH",
        f"no document's completion begins within max_length {max_length} tokens",
        facts=[f"{rows} rows, every one cut before its completion"],
        hint="raise max_length, or shorten the prompts",
    )
