"""The documents of a data set as a model reads them: for every kind that learns texts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.stage import Given
from ingot.errors import RefusedInput
from ingot.kit import chat, hf
from ingot.kit.train.documents import Corpus, Document, document, row_id

#: No cut.
_WHOLE = 1 << 40


@dataclass(frozen=True)
class Texts:
    """Documents to learn and held-out ones."""

    train: Corpus[Document]
    held: list[Document]
    seed: int

    @property
    def sample(self) -> list[Document]:
        """The first two documents of the first epoch: on these it is measured whether a model keeps them apart."""
        return list(itertools.islice(self.train.epoch(self.seed, 0), 2))


def read(stage: Any, given: Given, model: Any, tokenizer: Path | None = None) -> Texts:
    """The documents in role ``data``, with the tokenizer of the folder ``tokenizer`` (of role ``model`` unless given).

    Of ``stage`` it reads ``max_length``, ``too_long``, ``completion_only`` and ``eval_documents``. Where
    the spec refuses long documents, RefusedInput when one is drawn: E-DATASET-LONG beyond max_length, E-CONTEXT beyond
    what the model can read; else they are cut to the lesser of both.
    """
    reader = reader_for(stage, hf.load_lone_tokenizer(tokenizer or given.one("model")), model)
    data = given.one("data")
    held_rows = list(chat.read_rows(data, "eval")) if stage.eval_documents else []
    held = Corpus(held_rows, reader.document).first(stage.eval_documents)
    return Texts(Corpus(list(chat.read_rows(data, "train")), reader.document), held, given.seed or 0)


def reader_for(stage: Any, tokenizer: Any, model: Any) -> Reader:
    """What makes documents of rows for a model; of ``stage`` as ``read`` says."""
    return Reader(
        tokenizer,
        stage.max_length,
        refuse=stage.too_long == "refuse",
        completion_only=stage.completion_only,
        context=context_of(model),
    )


def context_of(model: Any) -> int | None:
    """The most tokens that a model can read; None when its configuration does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


@dataclass(frozen=True)
class Reader:
    """Makes documents of rows."""

    tokenizer: Any
    max_length: int
    refuse: bool = False
    completion_only: bool = True
    context: int | None = None

    def document(self, row: chat.Row) -> Document | None:
        """The document of a row, cut to ``max_length`` and the context; None when it is cut before its completion."""
        most = self.max_length if self.context is None else min(self.max_length, self.context)
        found = chat.encode(self.tokenizer, row, max_length=_WHOLE if self.refuse else most)
        self._check(row, len(found.ids))
        return document(row, found, completion_only=self.completion_only)

    def _check(self, row: chat.Row, length: int) -> None:
        if self.refuse and length > self.max_length:
            raise RefusedInput(
                "E-DATASET-LONG",
                f"a document has {length} tokens, beyond max_length {self.max_length}; spec: 'too_long: refuse'",
                facts=[f"id {row_id(row)}"],
                hint="raise max_length, use 'too_long: truncate', or leave long documents out of the data set",
            )
        if self.refuse and self.context is not None and length > self.context:
            raise RefusedInput(
                "E-CONTEXT",
                f"a document has {length} tokens, and the model reads {self.context}; the spec says 'too_long: refuse'",
                facts=[f"id {row_id(row)}"],
                hint="use 'too_long: truncate', or leave long documents out of the data set",
            )
