"""Let models say how likely text is: one alone, or one against what a reference says of the same tokens.

Log-softmax is computed in float32 from the logits that the runtime gives; sums over tokens are kept in float64. No
more than a segment of positions is in memory, of each side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ingot.core.stage import Progress
from ingot.errors import RefusedInput
from ingot.kit.backends import Scorable, not_finite
from ingot.kit.chat import Example
from ingot.kit.confidence.reliability import BINS, assign
from ingot.kit.scoring.units import Unit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Document:
    """The sums of a document or window: tokens scored, their negative log-likelihood in nats, bytes of their text.

    Against a reference also its nll and bytes and, where both read the same tokens, the KL divergence and how often
    both rank the same token first.
    """

    id: str
    tokens: int
    nll: float
    bytes: int | None = None
    ref_nll: float | None = None
    ref_bytes: int | None = None
    kl: float | None = None
    agree: int | None = None


@dataclass
class Scores:
    """All documents; of each what confidence exceeds being right by, in bins, and its divergences token by token."""

    documents: list[Document] = field(default_factory=list)
    gaps: list[Floats] = field(default_factory=list)
    token_kl: list[Floats] = field(default_factory=list)


class Reference(Protocol):
    """What a model is compared with, asked for the scored tokens of its units in their order."""

    units: Sequence[Unit]
    template: str | None

    def alone(self, progress: Progress) -> Scores:
        """What it scores itself; a reference that is run goes over its units for it."""
        ...

    def compare(self, log_q: torch.Tensor) -> tuple[Floats, int]:
        """KL(reference‖q) of the next rows, and in how many of them both rank the same token first.

        RefusedInput (E-EVAL-VOCABULARY) for rows of another width.
        """
        ...

    def nll(self, number: int) -> float:
        """The reference's own nll of a unit whose rows were compared."""
        ...


class Live:
    """A reference that is run beside the candidate."""

    def __init__(self, backend: Scorable, units: Sequence[Unit]) -> None:
        self.units, self._backend = units, backend
        self.template = backend.template.source
        self._targets = (token for unit in units for token in unit.example.ids[unit.example.labels_from :])
        self._rows = Rows(backend, [unit.example for unit in units])
        self._ends = np.cumsum([unit.example.scored for unit in units])
        self._picked: list[float] = []

    def alone(self, progress: Progress) -> Scores:
        """See ``Reference``."""
        return score(self._backend, self.units, None, progress)

    def compare(self, log_q: torch.Tensor) -> tuple[Floats, int]:
        """See ``Reference``."""
        log_p = self._rows.take(len(log_q))
        check_width(log_q, log_p.shape[-1])
        targets = torch.tensor([next(self._targets) for _ in range(len(log_p))])
        self._picked += picked(log_p, targets).tolist()
        return kl_divergence(log_p, log_q).double().numpy(), int((log_q.argmax(-1) == log_p.argmax(-1)).sum())

    def nll(self, number: int) -> float:
        """See ``Reference``."""
        start = int(self._ends[number - 1]) if number else 0
        return -math.fsum(self._picked[start : int(self._ends[number])])


class Rows:
    """A model's log-probabilities of what is scored, however many rows are asked for at a time."""

    def __init__(self, backend: Scorable, examples: Sequence[Example]) -> None:
        self._parts: Iterator[torch.Tensor] = (log_softmax(rows) for _, rows in backend.logits_of(examples))
        self._left: torch.Tensor | None = None

    def take(self, count: int) -> torch.Tensor:
        """The next rows."""
        parts = []
        while count:
            part = next(self._parts) if self._left is None else self._left
            parts.append(part[:count])
            self._left = part[count:] if len(part) > count else None
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def score(candidate: Scorable, units: Sequence[Unit], against: Reference | None, progress: Progress) -> Scores:
    """A model over every unit, and where the reference reads the same tokens against it.

    RefusedInput: E-EVAL-NAN for logits that are not finite, E-EVAL-VOCABULARY for outputs of unlike width.
    """
    scores, total = Scores(), sum(len(unit.example.ids) for unit in units)
    done, nll, tokens = 0, 0.0, 0
    sums = _Sums(units[0])
    for number, rows in candidate.logits_of([unit.example for unit in units]):
        sums.add(log_softmax(rows), against)
        if not sums.complete:
            continue
        document = sums.document(None if against is None else against.nll(number))
        scores.documents.append(document)
        scores.gaps.append(sums.gaps)
        scores.token_kl += [np.concatenate(sums.divergences)] if sums.divergences else []
        done, nll, tokens = done + len(units[number].example.ids), nll + document.nll, tokens + document.tokens
        progress(done, total, "tokens", perplexity=math.exp(min(nll / tokens, 700.0)))
        if number + 1 < len(units):
            sums = _Sums(units[number + 1])
    assert len(scores.documents) == len(units), "a model did not say all"
    return scores


def beside(scores: Scores, reference: Scores) -> None:
    """Put a reference's sums beside those of a model that reads other tokens of the same text."""
    scores.documents = [
        replace(document, ref_nll=other.nll, ref_bytes=other.bytes)
        for document, other in zip(scores.documents, reference.documents, strict=True)
    ]


class _Sums:
    """What is summed of one unit, part by part."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._at = unit.example.labels_from
        self._nll, self._agree = 0.0, 0
        self.divergences: list[Floats] = []
        self.gaps: Floats = np.zeros(BINS)

    @property
    def complete(self) -> bool:
        return self._at == len(self._unit.example.ids)

    def add(self, log_q: torch.Tensor, against: Reference | None) -> None:
        targets = torch.tensor(self._unit.example.ids[self._at : self._at + len(log_q)])
        self._at += len(log_q)
        assert len(targets) == len(log_q), "more positions were scored than there are"
        self._nll -= float(picked(log_q, targets).sum())
        self.gaps += confidence_gaps(log_q, targets)
        if against is not None:
            divergences, agree = against.compare(log_q)
            self.divergences.append(divergences)
            self._agree += agree

    def document(self, ref_nll: float | None) -> Document:
        unit = self._unit
        found = Document(unit.id, unit.example.scored, self._nll, unit.bytes)
        if ref_nll is None:
            return found
        kl = math.fsum(value for part in self.divergences for value in part)
        return replace(found, ref_nll=ref_nll, ref_bytes=unit.bytes, kl=kl, agree=self._agree)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Float32 log-probabilities. RefusedInput (E-EVAL-NAN) where they are not finite."""
    log = logits.float().log_softmax(-1)
    if not torch.isfinite(log.sum(-1)).all():
        raise not_finite()
    return log


def picked(log: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What each row says of its target, in float64."""
    return log.gather(-1, targets[:, None])[:, 0].double()


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) in nats, row by row, from float32 log-probabilities (rows x vocabulary).

    Never negative: what the rounding of float32 leaves below zero is zero.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def confidence_gaps(log: torch.Tensor, targets: torch.Tensor) -> Floats:
    """Of each bin of the likeliest token's probability: the sum of that less 1 where that token came."""
    top, which = log.max(-1)
    confidence = top.double().exp().numpy()
    gaps = confidence - (which == targets).numpy()
    return np.asarray(np.bincount(assign(confidence, BINS, "width"), weights=gaps, minlength=BINS), np.float64)


def check_width(log_q: torch.Tensor, width: int) -> None:
    """Refuse outputs of unlike width (E-EVAL-VOCABULARY)."""
    if log_q.shape[-1] != width:
        raise RefusedInput(
            "E-EVAL-VOCABULARY", f"the candidate has {log_q.shape[-1]} outputs and the reference {width}"
        )
