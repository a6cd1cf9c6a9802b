"""Documents to learn: rows as token ids, in an order that the seed and their content give."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ingot.errors import RefusedInput
from ingot.kit.train.objective import Item

Row = Mapping[str, Any]
ItemT = TypeVar("ItemT", bound=Item)


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


def document(row: Row, found: Encoded, *, completion_only: bool) -> Document | None:
    """The document of an encoded row; None when it was cut before its completion: it teaches nothing."""
    start = max(1, found.labels_from) if completion_only else 1
    doc = Document(row_id(row), tuple(found.ids), start)
    return doc if doc.scored > 0 else None


@dataclass(frozen=True)
class Position:
    """Where in the stream of items a training stands: the epoch, and the place in its order."""

    epoch: int = 0
    place: int = 0


class Corpus(Generic[ItemT]):
    """The rows of a data set in a seeded order, made into items when they are first drawn.

    ``make`` maps a row to an item, or to None where it teaches nothing: such rows are skipped.
    """

    def __init__(self, rows: Sequence[Row], make: Callable[[Row], ItemT | None]) -> None:
        self._rows = rows
        self._make = make
        self._known: dict[int, ItemT | None] = {}

    def __len__(self) -> int:
        """Rows, usable or not."""
        return len(self._rows)

    def _item(self, index: int) -> ItemT | None:
        if index not in self._known:
            self._known[index] = self._make(self._rows[index])
        return self._known[index]

    def first(self, count: int) -> list[ItemT]:
        """The first ``count`` usable items in the order of their ids: the same for every seed."""
        order = sorted(range(len(self._rows)), key=lambda index: row_id(self._rows[index]))
        found = (item for index in order if (item := self._item(index)) is not None)
        return list(itertools.islice(found, count))

    def _order(self, seed: int, number: int) -> list[int]:
        """The rows permuted by the hash of seed, epoch and id: equal on every machine."""

        def place(index: int) -> bytes:
            return hashlib.sha256(f"{seed}:{number}:{row_id(self._rows[index])}".encode()).digest()

        return sorted(range(len(self._rows)), key=place)

    def epoch(self, seed: int, number: int) -> Iterator[ItemT]:
        """All usable items of an epoch in its order."""
        for index in self._order(seed, number):
            item = self._item(index)
            if item is not None:
                yield item

    def batches(self, seed: int, size: int, start: Position = Position()) -> Iterator[tuple[list[ItemT], Position]]:
        """Batches of ``size`` items without end, each with the position after it; from ``start`` on.

        Epoch follows epoch, each in a new order; a batch may cross the end of one, so that every batch is full. Ends
        when an epoch has no usable row.
        """
        batch: list[ItemT] = []
        for number in itertools.count(start.epoch):
            order = self._order(seed, number)
            drawn = 0
            for place in range(start.place if number == start.epoch else 0, len(order)):
                item = self._item(order[place])
                if item is None:
                    continue
                drawn += 1
                batch.append(item)
                if len(batch) == size:
                    yield batch, Position(number, place + 1)
                    batch = []
            if not drawn and (number > start.epoch or start.place == 0):
                return


def row_id(row: Row) -> str:
    """The id of a row; where it has none, the hash of its content."""
    known = row.get("id")
    return known if isinstance(known, str) else hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


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
