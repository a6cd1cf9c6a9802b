"""Documents and settings for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ingot.kit.train.documents import Document
from ingot.kit.train.settings import Settings
from stagekit import stage_of

Doc = Document


def doc(name: str, *ids: int, start: int = 1) -> Document:
    """A document of these tokens."""
    return Document(name, ids, start)


def docs_of(count: int, vocabulary: int = 96) -> list[Document]:
    """Documents of different lengths with something to learn: each counts on from its first token."""
    return [
        doc(f"d{n:02}", *(1 + (7 * n + place) % (vocabulary - 1) for place in range(5 + 3 * (n % 4))))
        for n in range(count)
    ]


def settings(**changes: Any) -> Settings:
    """Settings of a short training."""
    stage = stage_of("adapter", {"steps": 3, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0})
    return replace(Settings.of(stage), **changes)
