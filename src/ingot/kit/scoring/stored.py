"""The artifact of ``logits``: what a reference says of held-out text, written and read a frame at a time.

``logits.json``: what was scored how, digests only. ``units.jsonl``: each document or window with its tokens, its exact
nll and the sums of its confidence. ``logits.bin``: frames (``codec``), each after its length as four bytes, the least
first; their rows follow one another whatever unit they are of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ingot.core.digest import read_json
from ingot.core.stage import Progress
from ingot.kit.chat import Example
from ingot.kit.scoring.codec import ROWS, Frame, damaged, decode, encode
from ingot.kit.scoring.run import Document, Floats, Scores, check_width
from ingot.kit.scoring.units import Unit

FORMAT = 1
_LENGTH = struct.Struct("<I")
_INDEX, _UNITS, _FRAMES = "logits.json", "units.jsonl", "logits.bin"


class Writer:
    """Writes the rows of a reference in frames. A ``Reference`` of ``score`` that compares nothing."""

    def __init__(self, folder: Path, units: Sequence[Unit], template: str | None) -> None:
        self.units, self.template = units, template
        self.vocabulary = self.rows = self.bytes = 0
        self._file = (folder / _FRAMES).open("xb")
        self._left: list[torch.Tensor] = []

    def alone(self, progress: Progress) -> Scores:
        """It says nothing."""
        del progress
        return Scores()

    def compare(self, log_q: torch.Tensor) -> tuple[Floats, int]:
        """Keep rows."""
        self.vocabulary = log_q.shape[-1]
        self._left.append(log_q)
        while sum(map(len, self._left)) >= ROWS:
            self._flush(ROWS)
        return np.zeros(0), 0

    def nll(self, number: int) -> float:
        """It is compared with nothing."""
        del number
        return 0.0

    def _flush(self, count: int) -> None:
        rows = torch.cat(self._left)
        frame = encode(rows[:count])
        self._file.write(_LENGTH.pack(len(frame)) + frame)
        self._left = [rows[count:]] if len(rows) > count else []
        self.rows, self.bytes = self.rows + count, self.bytes + len(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._left:
            self._flush(sum(map(len, self._left)))
        self._file.close()


def write_index(folder: Path, facts: Mapping[str, Any], units: Sequence[Unit], scores: Scores) -> None:
    """``logits.json`` and ``units.jsonl``."""
    text = json.dumps({"format": FORMAT, **facts}, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / _INDEX).write_text(text + "\n", encoding="utf-8")
    with (folder / _UNITS).open("x", encoding="utf-8") as file:
        for unit, document, gaps in zip(units, scores.documents, scores.gaps, strict=True):
            line = {
                "id": unit.id, "row": unit.row, "labels_from": unit.example.labels_from, "ids": unit.example.ids,
                "bytes": unit.bytes, "nll": document.nll, "gaps": gaps.tolist(),
            }  # fmt: skip
            file.write(json.dumps(line, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


class Stored:
    """A reference that was asked before. RefusedInput (E-LOGITS-FORMAT) where it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.facts = _index(folder)
        self.template: str | None = self.facts["template"]
        self._lines = _lines(folder)
        self.units: Sequence[Unit] = [
            Unit(line["id"], line["row"], Example(line["ids"], line["labels_from"]), line["bytes"])
            for line in self._lines
        ]
        if sum(unit.example.scored for unit in self.units) != self.facts["rows"]:
            raise damaged("its units do not have as many scored tokens as it has rows")
        self._frames = self._read()
        self._left: Frame | None = None

    def compare(self, log_q: torch.Tensor) -> tuple[Floats, int]:
        """See ``run.Reference``."""
        check_width(log_q, self.facts["vocabulary"])
        top = log_q.argmax(-1).numpy()
        divergences, agree, at = [], 0, 0
        while at < len(log_q):
            frame = self._next() if self._left is None else self._left
            stop = min(len(log_q), at + len(frame.own))
            part = frame.rows(0, stop - at)
            divergences.append(part.divergence(log_q[at:stop]))
            agree += int((part.top == top[at:stop]).sum())
            self._left = frame.rows(stop - at, len(frame.own)) if stop - at < len(frame.own) else None
            at = stop
        return np.concatenate(divergences), agree

    def nll(self, number: int) -> float:
        """See ``run.Reference``."""
        return float(self._lines[number]["nll"])

    def alone(self, progress: Progress) -> Scores:
        """See ``run.Reference``: no model is run for it."""
        del progress
        documents = [
            Document(unit.id, unit.example.scored, self.nll(number), unit.bytes)
            for number, unit in enumerate(self.units)
        ]
        return Scores(documents, [np.asarray(line["gaps"], np.float64) for line in self._lines])

    def _next(self) -> Frame:
        frame = next(self._frames, None)
        if frame is None:
            raise damaged("it has fewer rows than it says")
        return frame

    def _read(self) -> Iterator[Frame]:
        try:
            file = (self._folder / _FRAMES).open("rb")
        except OSError as error:
            raise damaged(str(error)) from error
        with file:
            while head := file.read(_LENGTH.size):
                size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
                yield decode(file.read(size), self.facts["vocabulary"])


def _index(folder: Path) -> dict[str, Any]:
    try:
        value = read_json((folder / _INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(str(error)) from error
    wanted = {"format", "reference", "data", "settings", "template", "vocabulary", "rows"}
    if not isinstance(value, dict) or value.get("format") != FORMAT or not set(value) >= wanted:
        raise damaged(f"{_INDEX} is not of format {FORMAT}")
    return value


def _lines(folder: Path) -> list[dict[str, Any]]:
    try:
        with (folder / _UNITS).open("rb") as file:
            lines = [read_json(line) for line in file]
    except (OSError, ValueError) as error:
        raise damaged(str(error)) from error
    wanted = {"id", "row", "labels_from", "ids", "bytes", "nll", "gaps"}
    found = [line for line in lines if isinstance(line, dict) and set(line) == wanted]
    if not found or len(found) != len(lines):
        raise damaged(f"{_UNITS} does not list its units")
    return found
