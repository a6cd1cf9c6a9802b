"""Metrics of what was scored, each with its 95 % interval over documents or windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ingot.core.stage import Metric
from ingot.kit.bootstrap import percentiles, ratio_interval, resampled_sums
from ingot.kit.confidence.reliability import BINS
from ingot.kit.scoring.run import Document, Floats, Scores
from ingot.kit.scoring.widths import UNKNOWN

_NATS = "nats/token"
#: What needs the same tokens on both sides.
TOKEN_LEVEL = ("nll_difference", "kl_divergence", "kl_p99", "top1_agreement")
#: Why it is missing where they are not the same.
OTHER_TOKENS = "the candidate's tokenizer gives other tokens than the reference's"

#: Why bits per byte are then not compared window by window.
OTHER_TEXT = "windows of other tokens hold other text"


class Quality:
    """The metrics of scores. ``units``: ``documents`` or ``windows``, which are drawn for the intervals."""

    def __init__(self, scores: Scores, units: str, resamples: int) -> None:
        self._scores, self._units, self._resamples = scores, units, resamples
        self._documents = scores.documents
        self._tokens = [document.tokens for document in scores.documents]
        text = "completion tokens of held-out documents" if units == "documents" else "scored tokens of all windows"
        self._what = f"{text}, float32 log-softmax"
        self._how = f"; 95 % interval: percentile bootstrap over {units}"

    def alone(self) -> dict[str, Metric]:
        """What a model is worth by itself."""
        nll = self._mean([document.nll for document in self._documents], f"mean negative log-likelihood, {self._what}")
        found = {
            "tokens": Metric(sum(self._tokens), "tokens", "tokens scored"),
            self._units: Metric(len(self._documents), self._units, f"{self._units} scored"),
            "nll": nll,
            "perplexity": Metric(
                math.exp(nll.value), "1", f"exp of nll; {self._what}{self._how}", nll.n, _exp(nll.interval)
            ),
        }
        if (pairs := _pairs(self._documents)) is not None:
            found["bits_per_byte"] = self._bits(*pairs)
        found["calibration_error"] = self._calibration_error()
        return found

    def against(self) -> dict[str, Metric]:
        """What it is worth beside the reference, token by token."""
        agree = [document.agree or 0 for document in self._documents]
        token_kl = np.concatenate(self._scores.token_kl)
        return {
            "nll_difference": self._mean(
                [document.nll - (document.ref_nll or 0.0) for document in self._documents],
                f"nll of the candidate less that of the reference on the same tokens, paired by {self._units[:-1]}; "
                "below 0 the candidate is better",
            ),
            "kl_divergence": self._mean(
                [document.kl or 0.0 for document in self._documents],
                "mean KL(reference‖candidate) of next-token distributions",
            ),
            "kl_p99": Metric(
                float(np.quantile(token_kl, 0.99)),
                "nats",
                f"99th percentile over tokens of KL(reference‖candidate){self._how}",
                len(token_kl),
                self._p99_interval(),
            ),
            "top1_agreement": Metric(
                sum(agree) / sum(self._tokens),
                "1",
                f"share of tokens where both rank the same token first{self._how}",
                sum(self._tokens),
                ratio_interval(agree, self._tokens, self._resamples),
            ),
        }

    def bits_difference(self) -> dict[str, Metric]:
        """Bits per byte less those of the reference, drawn together; nothing where either is not known."""
        sums = np.array(
            [
                [document.nll, _known(document.bytes), _known(document.ref_nll), _known(document.ref_bytes)]
                for document in self._documents
            ]
        ) / [math.log(2), 1, math.log(2), 1]
        if np.isnan(sums).any() or not sums[:, [1, 3]].sum(axis=0).all():
            return {}

        def difference(rows: Floats) -> Floats:
            found: Floats = rows[:, 0] / rows[:, 1] - rows[:, 2] / rows[:, 3]
            return found

        value = float(difference(sums.sum(axis=0, keepdims=True))[0])
        interval = None
        if len(sums) > 1:
            interval = percentiles(difference(resampled_sums(sums, self._resamples)))
        how = (
            f"bits_per_byte of the candidate less those of the reference on the same text, paired by "
            f"{self._units[:-1]}; below 0 the candidate is better{self._how}"
        )
        return {"bits_per_byte_difference": Metric(value, "bits/byte", how, int(sums[:, 1].sum()), interval)}

    def _mean(self, sums: Sequence[float], name: str) -> Metric:
        total = sum(self._tokens)
        interval = ratio_interval(sums, self._tokens, self._resamples)
        return Metric(math.fsum(sums) / total, _NATS, f"{name}{self._how}", total, interval)

    def _bits(self, nll: Sequence[float], size: Sequence[int]) -> Metric:
        bits = [value / math.log(2) for value in nll]
        how = (
            "negative log-likelihood in bits by the bytes (UTF-8) of the text that the scored tokens stand for, "
            f"{self._what}"
        )
        interval = ratio_interval(bits, size, self._resamples)
        return Metric(math.fsum(bits) / sum(size), "bits/byte", f"{how}{self._how}", sum(size), interval)

    def _calibration_error(self) -> Metric:
        sums = np.concatenate([np.stack(self._scores.gaps), np.array(self._tokens, np.float64)[:, None]], axis=1)

        def error(rows: Floats) -> Floats:
            found: Floats = np.abs(rows[:, :BINS]).sum(axis=1) / rows[:, BINS]
            return found

        interval = percentiles(error(resampled_sums(sums, self._resamples))) if len(sums) > 1 else None
        how = f"expected calibration error of the likeliest token's probability, {BINS} bins of equal width{self._how}"
        total = sum(self._tokens)
        return Metric(float(error(sums.sum(axis=0, keepdims=True))[0]), "1", how, total, interval)

    def _p99_interval(self) -> tuple[float, float] | None:
        """Over resamples, to within a two-thousandth of the tokens: they are counted between quantiles above 90 %."""
        by_unit = self._scores.token_kl
        if len(by_unit) < 2:
            return None
        edges = np.quantile(np.concatenate(by_unit), np.linspace(0.9, 1, 201))
        counts = [np.bincount(np.searchsorted(edges, values), minlength=len(edges)) for values in by_unit]
        drawn = resampled_sums(np.array(counts, np.float64), self._resamples).cumsum(axis=1)
        return percentiles(edges[(drawn >= 0.99 * drawn[:, -1:]).argmax(axis=1)])


def missing(found: Mapping[str, Metric], units: str, *, against: bool) -> dict[str, str]:
    """Why metrics that one would look for were not measured."""
    gone = {} if "bits_per_byte" in found else {"bits_per_byte": UNKNOWN}
    if against:
        gone |= {name: OTHER_TOKENS for name in TOKEN_LEVEL if name not in found}
        if "bits_per_byte_difference" not in found:
            same_text = units == "documents" or "kl_divergence" in found
            gone["bits_per_byte_difference"] = UNKNOWN if same_text else OTHER_TEXT
    return gone


def _pairs(documents: Sequence[Document]) -> tuple[list[float], list[int]] | None:
    sizes = [document.bytes for document in documents if document.bytes is not None]
    known = len(sizes) == len(documents) and sum(sizes) > 0
    return ([document.nll for document in documents], sizes) if known else None


def _exp(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _known(value: float | None) -> float:
    return math.nan if value is None else value
