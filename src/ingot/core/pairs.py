"""Intervals of what two measurements have to do with each other: their ratio or their difference.

Where both hold sums of the same documents, the documents are drawn with replacement and both are computed of each draw
(percentile bootstrap, 95 %; Efron & Tibshirani, *An Introduction to the Bootstrap*, ch. 13): what makes a document hard
for one model makes it hard for the other, and that cancels. Otherwise the interval is put together from both, as if
they were independent (Zou & Donner 2008: the ends of an interval recover the variance; ratios on the scale of
logarithms). Of something without an interval it is taken that it is exact.

Commands that only read load no numpy, so this is plain Python; documents beyond ``_BLOCKS`` are drawn in blocks of
neighbours, which are neighbours by the hash of their content alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

Form = Literal["ratio", "difference"]
Interval = tuple[float, float]

RESAMPLES = 2000
_BLOCKS = 200
_SEED = 0
#: Beyond so many times what was measured, a number of samples is no advice.
_HOPELESS = 1e4


@dataclass(frozen=True)
class Sums:
    """One entry a document: a metric is ``sum(tops) / sum(bottoms)``, with ``exp`` e to the power of that.

    With ``less`` it is the difference of two such fractions.
    """

    ids: tuple[str, ...]
    tops: tuple[float, ...]
    bottoms: tuple[float, ...]
    exp: bool = False
    less: Sums | None = None

    def value(self) -> float:
        """The metric of all documents."""
        found = self._of(math.fsum(self.tops), math.fsum(self.bottoms))
        return found if self.less is None else found - self.less.value()

    def _of(self, top: float, bottom: float) -> float:
        mean = top / bottom if bottom else math.nan
        return math.exp(min(mean, 700.0)) if self.exp else mean

    def draws(self) -> list[float]:
        """The metric of each draw; the same documents are drawn for all sums of as many documents."""
        count = len(self.ids)
        tops, bottoms = _blocks(self.tops), _blocks(self.bottoms)
        assert len(tops) == len(bottoms) == min(count, _BLOCKS)
        top, bottom = tops.__getitem__, bottoms.__getitem__
        found = [self._of(sum(map(top, drawn)), sum(map(bottom, drawn))) for drawn in _drawn(len(tops))]
        return found if self.less is None else [a - b for a, b in zip(found, self.less.draws(), strict=True)]


Row = Mapping[str, Any]
Documents = Sequence[Row]


class Ratio(NamedTuple):
    """A metric that is made of sums over documents: what each adds above and below the line of the fraction."""

    top: Callable[[Row], float]
    bottom: Callable[[Row], float]
    exp: bool = False
    less: Ratio | None = None


def _tokens(row: Row) -> float:
    return float(row["tokens"])


def _one(_row: Row) -> float:
    return 1.0


def _right(row: Row) -> float:
    return float(row["exact"] if row["pattern"] is None else row["pattern"])


def _bits(nll: str, size: str) -> Ratio:
    return Ratio(lambda row: row[nll] / math.log(2), lambda row: row[size])


#: What the lines of ``documents.jsonl`` give.
RATIOS: Mapping[str, Ratio] = {
    "nll": Ratio(lambda row: row["nll"], _tokens),
    "perplexity": Ratio(lambda row: row["nll"], _tokens, exp=True),
    "bits_per_byte": _bits("nll", "bytes"),
    "nll_difference": Ratio(lambda row: row["nll"] - row["ref_nll"], _tokens),
    "bits_per_byte_difference": _bits("nll", "bytes")._replace(less=_bits("ref_nll", "ref_bytes")),
    "kl_divergence": Ratio(lambda row: row["kl"], _tokens),
    "top1_agreement": Ratio(lambda row: row["agree"], _tokens),
}
#: What lines about one question each give: of ``answers.jsonl``, …
ANSWERS: Mapping[str, Ratio] = {
    "exact_match": Ratio(lambda row: row["exact"], _one),
    "pattern_accuracy": Ratio(_right, _one),
    "answers_ended": Ratio(lambda row: row["ended"], _one),
}


def of_item(metric: str) -> Ratio:
    """… and of ``items.jsonl``, where an item has what it scored under the name of the metric."""
    name = "exact" if metric == "exact_match" else metric
    return Ratio(lambda row: row[name if name in row else metric], _one)


def sums(ratio: Ratio, rows: Documents, value: float) -> Sums | None:
    """The sums of what was recorded with a value; None where the rows do not give it, or are of another form."""
    try:
        found = _sums(ratio, rows, ids := tuple(str(row["id"]) for row in rows))
        same = math.isclose(found.value(), value, rel_tol=1e-6, abs_tol=1e-12)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if same and len(set(ids)) == len(ids) else None


def _sums(ratio: Ratio, rows: Documents, ids: tuple[str, ...]) -> Sums:
    tops, bottoms = (tuple(float(part(row)) for row in rows) for part in (ratio.top, ratio.bottom))
    return Sums(ids, tops, bottoms, ratio.exp, None if ratio.less is None else _sums(ratio.less, rows, ids))


def _blocks(values: tuple[float, ...]) -> tuple[float, ...]:
    count = len(values)
    if count <= _BLOCKS:
        return values
    edges = [index * count // _BLOCKS for index in range(_BLOCKS + 1)]
    return tuple(math.fsum(values[low:high]) for low, high in pairwise(edges))


@lru_cache(maxsize=2)
def _drawn(count: int) -> tuple[tuple[int, ...], ...]:
    import random

    # What it gives for a seed is the same in every version of Python.
    draw = random.Random(_SEED).random  # noqa: S311 - nothing secret is drawn
    return tuple(tuple(int(draw() * count) for _ in range(count)) for _ in range(RESAMPLES))


def together(ours: float, theirs: float, form: Form) -> float | None:
    """The ratio or the difference of two values; None for a ratio to 0."""
    if form == "difference":
        return ours - theirs
    return ours / theirs if theirs else None


def paired(ours: Sums, theirs: Sums, form: Form) -> Interval | None:
    """The 95 % interval over documents that both have; None for fewer than two, or where a draw has no ratio."""
    if len(ours.ids) < 2:
        return None
    found = [together(one, two, form) for one, two in zip(ours.draws(), theirs.draws(), strict=True)]
    values = sorted(value for value in found if value is not None and math.isfinite(value))
    if len(values) < RESAMPLES:
        return None
    return _quantile(values, 0.025), _quantile(values, 0.975)


def _quantile(values: list[float], share: float) -> float:
    """Of sorted values; between two neighbours in proportion, as numpy's default."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def combined(ours: tuple[float, Interval | None], theirs: tuple[float, Interval | None], form: Form) -> Interval | None:
    """The interval made of two; None where neither has one, or where a ratio's logarithm does not exist."""
    (a, of_a), (b, of_b) = ours, theirs
    if of_a is None and of_b is None:
        return None
    (low_a, high_a), (low_b, high_b) = of_a or (a, a), of_b or (b, b)
    if form == "difference":
        return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)
    if min(a, low_a, b, low_b) <= 0:
        return None
    below = math.hypot(math.log(a / low_a), math.log(high_b / b))
    above = math.hypot(math.log(high_a / a), math.log(b / low_b))
    return a / b * math.exp(-below), a / b * math.exp(above)


def needed(value: float, interval: Interval, limit: float, samples: tuple[int, str] | None) -> str:
    """``; about 96 documents would tell (24 were measured)``: widths shrink with the root of the number of samples."""
    distance = abs(limit - value)
    width = abs((interval[1] if limit > value else interval[0]) - value)
    times = (width / distance) ** 2 if distance else math.inf
    if times > _HOPELESS:
        return ": the value is too near the limit for any number of samples"
    if samples is None:
        return f": about {max(times, 1):.2g} times as many would tell"
    count, unit = samples
    return f": about {math.ceil(count * max(times, 1)):,} {unit} would tell, {count:,} were measured"
