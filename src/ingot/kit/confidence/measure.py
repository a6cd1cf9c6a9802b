"""Calibrate a model on some held-out documents, and measure on others what that was worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingot.core.stage import Progress
from ingot.kit.backends import Backend, not_finite
from ingot.kit.chat import Example, Row
from ingot.kit.confidence.logits import Floats, OnDisk, Sure, chance, sure
from ingot.kit.confidence.reliability import Documents
from ingot.kit.confidence.scaling import Fit, fit_platt, fit_temperature

Chosen = Sequence[tuple[Row, Example]]


@dataclass(frozen=True)
class Fitted:
    """Both scalings, and the documents that they were fitted on."""

    temperature: Fit
    platt: Fit
    documents: Documents

    @property
    def degrees(self) -> float:
        """The temperature."""
        return 1 / self.temperature.values[0]

    def platt_of(self, logit: Floats) -> Floats:
        """The confidence that Platt's scaling gives to log-odds."""
        a, b = self.platt.values
        return chance(a * logit + b)


@dataclass(frozen=True)
class Measured:
    """Positions that nothing was fitted on: as the model gives them, and at the fitted temperature."""

    before: Sure
    after: Sure
    documents: Documents


def divide(chosen: Chosen, share: float) -> tuple[Chosen, Chosen]:
    """Documents to fit on and to measure on, by the hash of their ids; each side has two at least."""
    order = sorted(chosen, key=lambda item: hashlib.sha256(f"calibrate:{item[0].get('id', '')}".encode()).digest())
    at = min(max(2, round(share * len(order))), len(order) - 2)
    return order[:at], order[at:]


def fit(backend: Backend, chosen: Chosen, scratch: Path, progress: Progress) -> Fitted:
    """Run the model once over the documents, keep its logits on disk, and fit both scalings. E-CALIBRATE-BOUND."""
    kept, of = OnDisk(scratch / "logits.f32"), []
    found: list[Sure] = []
    for number, rows, right in _rows(backend, chosen, progress):
        kept.add(rows.numpy(), right)
        of.append(np.full(len(right), number))
        found.append(sure(rows.double().numpy(), right))
    before, documents = _joined(found), Documents(np.concatenate(of))
    progress.phase("fit the temperature")
    temperature = fit_temperature(kept, lambda passes: progress(passes, None, "passes"))
    return Fitted(temperature, fit_platt(before.logit, before.right), documents)


def measure(backend: Backend, chosen: Chosen, temperature: float, progress: Progress) -> Measured:
    """Run the model over the other documents; nothing but a few numbers a position is kept."""
    before: list[Sure] = []
    after: list[Sure] = []
    of = []
    for number, rows, right in _rows(backend, chosen, progress):
        wide = rows.double().numpy()
        before.append(sure(wide, right))
        after.append(sure(wide, right, temperature))
        of.append(np.full(len(right), number))
    return Measured(_joined(before), _joined(after), Documents(np.concatenate(of)))


def _rows(backend: Backend, chosen: Chosen, progress: Progress) -> Iterator[tuple[int, torch.Tensor, Any]]:
    """(number of the document, logits, the tokens that were right), segment by segment. RefusedInput (E-EVAL-NAN)."""
    total, done = sum(example.scored for _, example in chosen), 0
    for number, (_, example) in enumerate(chosen):
        at = example.labels_from
        for logits in backend.logits(example.ids, at):
            if not torch.isfinite(logits).all():
                raise not_finite()
            yield number, logits.float().cpu(), np.array(example.ids[at : at + len(logits)])
            at += len(logits)
            done += len(logits)
            progress(done, total, "tokens")


def _joined(parts: Sequence[Sure]) -> Sure:
    return Sure(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("logit", "right", "nll")))
