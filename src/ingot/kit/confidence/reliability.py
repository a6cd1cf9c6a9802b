"""Expected calibration error: by how much confidence and accuracy differ, bin by bin, and how sure that is.

ECE = Σ_b n_b/n · |accuracy_b - confidence_b| (Naeini et al. 2015): of bins of equal width, ((b-1)/B, b/B], or of equal
numbers of positions. A finite sample is never quite calibrated, so the ECE of a perfect model is above 0 by about what
the interval shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingot.kit.bootstrap import percentiles, resampled_sums
from ingot.kit.confidence.logits import Floats
from ingot.kit.confidence.scaling import Fit

#: Bins where no parameter says how many.
BINS = 15


@dataclass(frozen=True)
class Bin:
    """Positions of a range of confidence: how many, how sure on average, how often right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Documents:
    """Which document each position is of, as numbers from 0."""

    of: npt.NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.of.max()) + 1

    def sums(self, values: Floats) -> Floats:
        """The sums of rows of values by document."""
        flat = values.reshape(len(values), -1)
        found = np.zeros((self.count, flat.shape[1]))
        np.add.at(found, self.of, flat)
        return found


def assign(confidence: Floats, bins: int, how: str) -> npt.NDArray[np.int64]:
    """The bin of each position: ``width`` cuts [0, 1] into equal parts, ``mass`` the positions into equal numbers."""
    if how == "width":
        return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    order = np.argsort(confidence, kind="stable")
    found = np.empty(len(confidence), np.int64)
    found[order] = np.arange(len(confidence)) * bins // len(confidence)
    return found


def gaps(confidence: Floats, right: npt.NDArray[np.bool_], bins: int, how: str) -> Floats:
    """By how much each position (row) is surer than right, in the column of its bin."""
    found = np.zeros((len(confidence), bins))
    found[np.arange(len(confidence)), assign(confidence, bins, how)] = confidence - right
    return found


@dataclass(frozen=True)
class Reliability:
    """The bins of some positions, their ECE, and its value in each resample of the documents."""

    bins: tuple[Bin, ...]
    ece: float
    resampled: Floats


def reliability(
    confidence: Floats, right: npt.NDArray[np.bool_], documents: Documents, cut: tuple[int, str], resamples: int
) -> Reliability:
    """Measure it; ``cut`` is the number of bins and how they are made."""
    count, how = cut
    which = assign(confidence, count, how)
    ones = np.ones((len(confidence), 1))
    sums = documents.sums(np.hstack([gaps(confidence, right, count, how), ones]))
    total = sums.sum(axis=0)
    drawn = resampled_sums(sums, resamples)
    found = [(b, which == b) for b in range(count) if (which == b).any()]
    return Reliability(
        tuple(_bin(confidence[here], right[here], (b, count, how)) for b, here in found),
        float(np.abs(total[:count]).sum() / total[count]),
        np.abs(drawn[:, :count]).sum(axis=1) / drawn[:, count],
    )  # fmt: skip


def _bin(confidence: Floats, right: npt.NDArray[np.bool_], place: tuple[int, int, str]) -> Bin:
    number, count, how = place
    ends = (number / count, (number + 1) / count)
    low, high = ends if how == "width" else (float(confidence.min()), float(confidence.max()))
    return Bin(low, high, len(confidence), float(confidence.mean()), float(right.mean()))


def intervals(
    fit: Fit, documents: Documents, resamples: int, shown: Callable[[Floats], Floats] = lambda it: it
) -> list[tuple[float, float]]:
    """The 95 % interval of each fitted parameter, documents drawn with replacement.

    Each resample takes one step of Newton's method from the fit of all: as good as fitting anew near it, and no pass
    over the logits. ``shown`` maps parameters to what is told of them.
    """
    size = len(fit.values)
    drawn = resampled_sums(
        np.concatenate([documents.sums(fit.gradient), documents.sums(fit.hessian)], axis=1), resamples
    )
    hessian = drawn[:, size:].reshape(-1, size, size) + 1e-12 * np.eye(size)
    steps = np.linalg.solve(hessian, drawn[:, :size, None])[:, :, 0]
    found = shown(np.array(fit.values) - steps)
    return [percentiles(found[:, at]) for at in range(size)]
