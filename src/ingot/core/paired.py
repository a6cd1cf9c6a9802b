"""The difference of a metric between two models on the same documents, paired, with its 95 % interval.

Both evaluations keep the sums of each document. A resample draws documents, and takes both models' sums of the same
ones, so what makes a document hard or easy cancels. Percentile bootstrap, as for every interval of ingot; the numbers
are drawn by Python's own generator, since a reading command loads no numpy. With many documents the interval is that
which the bootstrap comes to: normal, of the linearised difference (the delta method).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

SEED = 0
RESAMPLES = 2000
#: With more documents the distribution of a mean is normal for all purposes, and resampling would take seconds.
MOST_RESAMPLED = 100
_LEVEL = 0.95
#: How far a value that is summed up again may be from the recorded one, relative to it.
_TOLERANCE = 1e-6
#: By how much a sum is moved to see what that does.
_NUDGE = 1e-6

Documents = Sequence[Mapping[str, Any]]
#: The sums of one document.
_Row = tuple[float, ...]


class Sums(NamedTuple):
    """A metric made of sums over documents: which fields are summed up, and what is made of the sums."""

    fields: tuple[str, ...]
    finish: Callable[..., float]


def _share(one: float, other: float) -> float:
    return one / other


SUMS: Mapping[str, Sums] = {
    "nll": Sums(("nll", "tokens"), _share),
    "perplexity": Sums(("nll", "tokens"), lambda nll, tokens: math.exp(nll / tokens)),
    "bits_per_byte": Sums(("nll", "bytes"), lambda nll, size: nll / math.log(2) / size),
    "nll_difference": Sums(("nll", "ref_nll", "tokens"), lambda nll, other, tokens: (nll - other) / tokens),
    "bits_per_byte_difference": Sums(
        ("nll", "bytes", "ref_nll", "ref_bytes"),
        lambda nll, size, other, other_size: (nll / size - other / other_size) / math.log(2),
    ),
    "kl_divergence": Sums(("kl", "tokens"), _share),
    "top1_agreement": Sums(("agree", "tokens"), _share),
}


class Difference(NamedTuple):
    """After less before; no interval where there are too few documents for one."""

    value: float
    interval: tuple[float, float] | None
    documents: int


def difference(metric: str, before: Documents, after: Documents, values: tuple[float, float]) -> Difference | None:
    """The paired difference of a metric whose recorded values are ``values``; None where it cannot be had.

    That is: the metric is not made of sums, the documents are others, or their sums do not give the recorded values.
    """
    sums = SUMS.get(metric)
    if sums is None or not before or [it.get("id") for it in before] != [it.get("id") for it in after]:
        return None
    try:
        rows = [
            tuple(float(it[name]) for it in pair for name in sums.fields) for pair in zip(before, after, strict=True)
        ]
        totals = [math.fsum(column) for column in zip(*rows, strict=True)]
        ends = sums.finish(*totals[: len(sums.fields)]), sums.finish(*totals[len(sums.fields) :])
        close = [math.isclose(*pair, rel_tol=_TOLERANCE, abs_tol=1e-12) for pair in zip(ends, values, strict=True)]
        if not all(close):
            return None
        interval = _interval(sums, rows, totals) if len(rows) > 1 else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return Difference(values[1] - values[0], interval, len(rows))


def _interval(sums: Sums, rows: Sequence[_Row], totals: Sequence[float]) -> tuple[float, float]:
    half = len(sums.fields)

    def change(of: Sequence[float]) -> float:
        return sums.finish(*of[half:]) - sums.finish(*of[:half])

    if len(rows) > MOST_RESAMPLED:
        return _linear(change, rows, totals)
    columns = list(zip(*rows, strict=True))
    found = sorted(change([sum(map(column.__getitem__, drawn)) for column in columns]) for drawn in _draws(len(rows)))
    return _quantile(found, (1 - _LEVEL) / 2), _quantile(found, (1 + _LEVEL) / 2)


@cache
def _draws(count: int) -> list[list[int]]:
    """The same for all metrics and steps of as many documents."""
    generator, documents = random.Random(SEED), range(count)  # noqa: S311 - nothing here is a secret
    return [generator.choices(documents, k=count) for _ in range(RESAMPLES)]


def _linear(
    change: Callable[[Sequence[float]], float], rows: Sequence[_Row], totals: Sequence[float]
) -> tuple[float, float]:
    """What a document adds to the difference, to first order; the sum over independent documents is normal."""
    slopes = []
    for at, total in enumerate(totals):
        step = _NUDGE * (abs(total) or 1.0)
        up, down = ([*totals[:at], total + side * step, *totals[at + 1 :]] for side in (1, -1))
        slopes.append((change(up) - change(down)) / (2 * step))
    parts = [sum(slope * value for slope, value in zip(slopes, row, strict=True)) for row in rows]
    mean = math.fsum(parts) / len(parts)
    spread = math.sqrt(len(parts) / (len(parts) - 1) * math.fsum((part - mean) ** 2 for part in parts))
    middle, reach = change(totals), NormalDist().inv_cdf((1 + _LEVEL) / 2) * spread
    return middle - reach, middle + reach


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest, as numpy's default is."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
