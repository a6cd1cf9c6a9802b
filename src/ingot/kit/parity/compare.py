"""Two traces of one text compared: position by position, and layer by layer. All sums are in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingot.kit.parity.trace import Array, Trace

Wide = npt.NDArray[np.float64]

#: Positions that are compared at once: a vocabulary has a hundred thousand numbers for each.
_ROWS = 16


@dataclass(frozen=True)
class Positions:
    """Of each position of a text, export against source: see the functions that compute them."""

    cosine: Wide
    difference: Wide
    agrees: npt.NDArray[np.bool_]
    kl: Wide


def compare_logits(found: Array, wanted: Array, tie: float) -> Positions:
    """Logits (n, vocabulary) of an export and of its source; all finite. A few rows at a time, in float64."""
    pieces = [_compare(found[at : at + _ROWS], wanted[at : at + _ROWS], tie) for at in range(0, len(found), _ROWS)]
    return Positions(
        np.concatenate([piece.cosine for piece in pieces]),
        np.concatenate([piece.difference for piece in pieces]),
        np.concatenate([piece.agrees for piece in pieces]),
        np.concatenate([piece.kl for piece in pieces]),
    )


def _compare(found: Array, wanted: Array, tie: float) -> Positions:
    export, source = found.astype(np.float64), wanted.astype(np.float64)
    return Positions(
        cosine(export, source), np.abs(export - source).max(-1), top1_agrees(export, source, tie), kl(source, export)
    )


def cosine(one: Wide, two: Wide) -> Wide:
    """``a·b / (‖a‖ ‖b‖)`` of each row; of two rows of zeros 1, of one 0."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    both = (np.abs(one).max(-1) == 0) & (np.abs(two).max(-1) == 0)
    alike = (one * two).sum(-1) / np.where(lengths > 0, lengths, 1)
    result: Wide = np.clip(np.where(lengths > 0, alike, both), -1, 1)
    return result


def top1_agrees(export: Wide, source: Wide, tie: float) -> npt.NDArray[np.bool_]:
    """Whether the export's likeliest token is one of the source's.

    The source's are all whose logit is within ``tie`` times the row's largest magnitude of its largest: those are equal
    in the type in which an export gives them.
    """
    first = np.take_along_axis(source, export.argmax(-1)[:, None], -1)[:, 0]
    agrees: npt.NDArray[np.bool_] = first >= source.max(-1) - tie * np.abs(source).max(-1)
    return agrees


def kl(source: Wide, export: Wide) -> Wide:
    """KL(source‖export) in nats, row by row; what rounding leaves below zero is zero."""
    log_p, log_q = log_softmax(source), log_softmax(export)
    result: Wide = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0)
    return result


def log_softmax(logits: Wide) -> Wide:
    """Logarithms of the probabilities of each row."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Wide = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def relative_difference(found: Array, wanted: Array) -> float:
    """``‖found - wanted‖ / ‖wanted‖`` of the position where it is largest; infinite where ``found`` is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    apart = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1)
    return float((apart / np.maximum(np.linalg.norm(wanted.astype(np.float64), axis=-1), 1e-30)).max())


def lowest_cosine(found: Array, wanted: Array) -> float:
    """Of the position where it is lowest; -1 where ``found`` is not finite."""
    if not np.isfinite(found).all():
        return -1.0
    return float(cosine(found.astype(np.float64), wanted.astype(np.float64)).min())


def stops(trace: Trace) -> list[Array]:
    """What can be compared of a trace, in the order in which it is computed: embedding, layers, logits."""
    return [*trace.hidden, trace.logits]


def place_of(index: int, count: int) -> str:
    """The words for one of ``count`` stops; layers are counted from 0, as weights are named."""
    if index == 0:
        return "the embedding"
    return "the output layer" if index == count - 1 else f"layer {index - 1}"


def first_bad(own: Sequence[float], limit: float) -> int | None:
    """The first stop whose own difference is above what the precision explains; None where none is.

    A stop's *own* difference is that from what the source makes of the same input, the export's, so that what earlier
    layers did wrong is in it no more, however much later ones amplify it.
    """
    return next((index for index, value in enumerate(own) if not value <= limit), None)
