"""95 % intervals: of a ratio of sums by resampling documents (percentile bootstrap), of a share by Wilson's method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.core.stage import Metric

#: Fixed, so that equal measurements give equal intervals; part of the method, not a setting.
SEED = 0
LEVEL = 0.95
#: Resamples where no parameter says how many.
RESAMPLES = 2000
_BLOCK = 4_000_000  # indices drawn at once: bounds the memory whatever the number of documents


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], resamples: int
) -> tuple[float, float] | None:
    """The 95 % interval of ``sum(numerators) / sum(denominators)``, documents drawn with replacement.

    One entry a document, so that the tokens of one document stay together (they are not independent);
    for a paired difference the numerators are the differences document by document. Percentile method
    (Efron 1979; Efron & Tibshirani, *An Introduction to the Bootstrap*, ch. 13). None for fewer than two
    documents: one document says nothing of the spread between documents.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.asarray(denominators, dtype=np.float64)
    if len(top) < 2:
        return None
    return percentiles(_resampled(top, bottom, resamples))


def percentiles(resampled: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of what was computed of each resample."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(
    top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64], resamples: int
) -> npt.NDArray[np.float64]:
    generator = np.random.Generator(np.random.PCG64(SEED))
    count, parts, left = len(top), [], resamples
    while left:
        rows = min(left, max(1, _BLOCK // count))
        drawn = generator.integers(0, count, (rows, count))
        parts.append(top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1))
        left -= rows
    return np.concatenate(parts)


def resampled_sums(values: npt.NDArray[np.float64], resamples: int) -> npt.NDArray[np.float64]:
    """The sums of the columns of ``values`` in each resample of its rows, one row a document; drawn as above."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    count, parts, left = len(values), [], resamples
    while left:
        rows = min(left, max(1, _BLOCK // count))
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(times @ values)
        left -= rows
    return np.concatenate(parts)


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, ``count`` of ``of`` independent trials, by Wilson's score method (1927).

    Unlike the bootstrap and the normal approximation it does not call a share of 0 or 1 certain.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, shrink = count / of, 1 + z * z / of
    centre = (share + z * z / (2 * of)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of_sums(tops: Sequence[float], bottoms: Sequence[float], resamples: int) -> tuple[float, float] | None:
    """The 95 % interval of ``sum(tops) / sum(bottoms)`` where each unit's share lies between 0 and 1.

    ``ratio_interval``, and where all units are wholly right, or all wholly wrong, Wilson's of the units: resamples of
    such are all alike, and 1 of few units would be called certain (Lam 2023, https://arxiv.org/abs/2309.14621, on the
    F1 score, which calls that degeneracy and inverts Wilson's test, too). The unit is the trial, not what is counted
    in it: the calls of one question are not independent.
    """
    interval = ratio_interval(tops, bottoms, resamples)
    alike = {top / bottom for top, bottom in zip(tops, bottoms, strict=True)}
    if interval is None or alike not in ({0.0}, {1.0}):
        return interval
    return share_interval(len(tops) if alike == {1.0} else 0, len(tops))


def share(count: int, of: int, how: str) -> Metric:
    """A share as a metric with its interval; ``how`` it was measured."""
    return Metric(count / of, "1", f"{how}; 95 % interval: Wilson's", of, share_interval(count, of))


def statistic_interval(
    items: Sequence[Any], statistic: Callable[[Sequence[Any]], float], resamples: int
) -> tuple[float, float] | None:
    """The 95 % interval of any statistic of items drawn with replacement, by the percentile method.

    None for fewer than two items, and where the statistic of a resample is no number.
    """
    if len(items) < 2:
        return None
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.integers(0, len(items), (resamples, len(items)))
    found = np.array([statistic([items[at] for at in row]) for row in drawn], dtype=np.float64)
    return percentiles(found) if np.isfinite(found).all() else None
