"""From documents to the rows of a data set: filter, remove duplicates, identify, divide, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.scalars import shorten
from ingot.core.stage import Progress
from ingot.errors import RefusedInput
from ingot.kit.documents import Document, Form, to_form


@dataclass(frozen=True)
class Row:
    """A row to write: its id (16 hex digits of the SHA-256 of its canonical content) and its document."""

    id: str
    document: Document

    def line(self) -> bytes:
        """The row as a line of JSON."""
        row = {"id": self.id, **self.document.content()}
        if self.document.pattern is not None:
            row["pattern"] = self.document.pattern
        return json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def sift(
    documents: Sequence[Document],
    chars: tuple[int, int | None],
    threshold: float | None,
    counts: dict[str, int],
    progress: Progress,
) -> list[Document]:
    """The documents of a fitting length that duplicate no earlier one; what falls out is added to ``counts``."""
    fitting: list[Document] = []
    seen: set[str] = set()
    for document in documents:
        lengths = [len(answer) for answer in document.answers]
        if document.form == "preference" and document.parts[-2] == document.parts[-1]:
            counts["same_answers"] += 1
        elif min(lengths) < chars[0]:
            counts["too_short"] += 1
        elif chars[1] is not None and max(lengths) > chars[1]:
            counts["too_long"] += 1
        elif document.compared in seen:
            counts["exact_duplicates"] += 1
        else:
            seen.add(document.compared)
            fitting.append(document)
    if threshold is None or not fitting:
        return fitting
    from ingot.kit.near_duplicates import duplicates_of_earlier

    progress.phase("looking for near-duplicates")
    texts = [document.compared for document in fitting]
    found = duplicates_of_earlier(texts, threshold, lambda done: progress(done, len(texts), "documents"))
    counts["near_duplicates"] = len(found)
    return [document for index, document in enumerate(fitting) if index not in found]


def identified(documents: Sequence[Document], form: Form, system: str | None) -> list[Row]:
    """The documents as rows of one form, in the order of their ids: a shuffle that depends on content only.

    Two documents that become the same row are one. RefusedInput (E-DATASET-EMPTY) when none is left.
    """
    rows = {}
    for document in documents:
        shaped = to_form(document, form, system)
        row_id = sha256_bytes(canonical_json(shaped.content()))[:16]
        rows[row_id] = Row(row_id, shaped)
    if not rows:
        raise RefusedInput(
            "E-DATASET-EMPTY",
            "no document is left for the data set",
            hint="look at min_chars and max_chars, and at what the sources hold",
        )
    return [rows[row_id] for row_id in sorted(rows)]


def check_patterns(rows: Sequence[Row]) -> None:
    """RefusedInput (E-DATASET-PATTERN) where a row's own answer does not match its pattern: no answer could be right.

    Also E-PATTERN and E-PATTERN-LIMIT (``kit.patterns``).
    """
    asked = [row.document for row in rows if row.document.pattern is not None]
    if not asked:
        return
    from ingot.kit.patterns import Matcher

    matcher = Matcher()
    for document in asked:
        if not matcher.matches(document.pattern or "", document.learned):
            raise RefusedInput(
                "E-DATASET-PATTERN",
                f"the answer {shorten(document.learned)!r} does not match the pattern of its row",
                facts=[f"pattern: {shorten(document.pattern or '')!r}"],
                hint="a pattern holds for the whole of every right answer (Python's re.fullmatch)",
            )
    matcher.close()


def divide(rows: Sequence[Row], share: float) -> dict[str, list[Row]]:
    """``train`` and ``eval``: groups whose hash falls below ``share`` are held out.

    A side that would be empty gets the group nearest to the border. RefusedInput (E-DATASET-EMPTY) for one group alone.
    """
    if share == 0:
        return {"train": list(rows), "eval": []}
    places = {row.document.group: _place(row.document.group) for row in rows}
    if len(places) < 2:
        raise RefusedInput(
            "E-DATASET-EMPTY",
            "one document, or one prompt, cannot be split into train and eval",
            hint="add documents, or set split: {eval: 0}",
        )
    border = max(share, min(places.values()))
    held_out = {group for group, place in places.items() if place < share or place == border}
    if len(held_out) == len(places):
        held_out.remove(max(places, key=lambda group: (places[group], group)))
    return {
        "train": [row for row in rows if row.document.group not in held_out],
        "eval": [row for row in rows if row.document.group in held_out],
    }


def _place(group: str) -> float:
    """A number in [0, 1) that depends on the group alone."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def write_rows(path: Path, rows: Sequence[Row]) -> int:
    """Write rows as JSON lines; returns how many characters of text they hold."""
    characters = 0
    with path.open("xb") as file:
        for row in rows:
            file.write(row.line())
            characters += _characters(row.document.content())
    return characters


def _characters(content: Mapping[str, Any]) -> int:
    messages = sum(len(message["content"]) for message in content.get("messages", ()))
    return messages + sum(len(text) for name, text in content.items() if name != "messages")
