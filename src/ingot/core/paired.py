"""The difference of a metric between two models on the same documents, paired, with its 95 % interval.

Both evaluations keep the sums of each document. A resample draws documents, and takes both models' sums of the same
ones, so what makes a document hard or easy cancels. Percentile bootstrap, as for every interval of ingot; the numbers
are drawn by Python's own generator, since a reading command loads no numpy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SEED = 0
RESAMPLES = 2000
_LEAST_RESAMPLES = 1000
#: Draws in all: with very many documents fewer resamples are taken, never fewer than a thousand.
_DRAWS = 2_000_000
#: How far a value that is summed up again may be from the recorded one, relative to it.
_TOLERANCE = 1e-6

Documents = Sequence[Mapping[str, Any]]


class Ratio(NamedTuple):
    """A metric that is made of sums over documents: ``finish(sum of top / sum of bottom)``."""

    top: Callable[[Mapping[str, Any]], float]
    bottom: str
    finish: Callable[[float], float] = float


RATIOS: Mapping[str, Ratio] = {
    "nll": Ratio(lambda it: it["nll"], "tokens"),
    "perplexity": Ratio(lambda it: it["nll"], "tokens", math.exp),
    "bits_per_byte": Ratio(lambda it: it["nll"] / math.log(2), "bytes"),
    "nll_difference": Ratio(lambda it: it["nll"] - it["ref_nll"], "tokens"),
    "kl_divergence": Ratio(lambda it: it["kl"], "tokens"),
    "top1_agreement": Ratio(lambda it: it["agree"], "tokens"),
}


class Difference(NamedTuple):
    """After less before; no interval where there are too few documents for one."""

    value: float
    interval: tuple[float, float] | None
    documents: int
    resamples: int


def difference(metric: str, before: Documents, after: Documents, values: tuple[float, float]) -> Difference | None:
    """The paired difference of a metric whose recorded values are ``values``; None where it cannot be had.

    That is: the metric is not made of sums, the documents are others, or their sums do not give the recorded values.
    """
    ratio = RATIOS.get(metric)
    if ratio is None or not before or [it.get("id") for it in before] != [it.get("id") for it in after]:
        return None
    try:
        sides = [[(float(ratio.top(it)), float(it[ratio.bottom])) for it in side] for side in (before, after)]
        found = [_value(ratio, side, range(len(side))) for side in sides]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if any(
        not math.isclose(one, value, rel_tol=_TOLERANCE, abs_tol=1e-12)
        for one, value in zip(found, values, strict=True)
    ):
        return None
    count = max(_LEAST_RESAMPLES, min(RESAMPLES, _DRAWS // len(before)))
    interval = _interval(ratio, sides[0], sides[1], count) if len(before) > 1 else None
    return Difference(values[1] - values[0], interval, len(before), count)


def _value(ratio: Ratio, side: Sequence[tuple[float, float]], drawn: Sequence[int]) -> float:
    top = bottom = 0.0
    for index in drawn:
        one, other = side[index]
        top += one
        bottom += other
    return ratio.finish(top / bottom)


def _interval(
    ratio: Ratio, before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], count: int
) -> tuple[float, float]:
    generator, all_of_them = random.Random(SEED), range(len(before))  # noqa: S311 - nothing here is a secret
    found = []
    for _ in range(count):
        drawn = generator.choices(all_of_them, k=len(before))
        found.append(_value(ratio, after, drawn) - _value(ratio, before, drawn))
    found.sort()
    return _quantile(found, 0.025), _quantile(found, 0.975)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest, as numpy's default is."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
