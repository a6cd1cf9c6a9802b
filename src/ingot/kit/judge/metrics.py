"""What judgements say: how often the candidate wins, and how sound the judge is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ingot.core.stage import Metric
from ingot.kit.bootstrap import percentiles, ratio_interval, resampled_sums, share
from ingot.kit.judge.pairs import OUTCOMES, Judged, Outcome

_MEANING: Mapping[Outcome, str] = {
    "win": "the candidate's answer is the better one in both orders",
    "tie": "neither answer is the better one in both orders, or they are the same",
    "loss": "the reference's answer is the better one in both orders",
}


def metrics(judged: Sequence[Judged], by: str, resamples: int) -> tuple[dict[str, Metric], dict[str, str]]:
    """How often the candidate wins, how sound the judge is, and why the rest is not measured."""
    count = len(judged)
    measured = {"pairs": Metric(count, "pairs", "prompts whose two answers were compared")}
    for outcome in OUTCOMES:
        found = sum(item.outcome == outcome for item in judged)
        measured[f"{outcome}_rate"] = share(found, count, f"share of pairs, {_MEANING[outcome]} ({by})")
    asked = [item for item in judged if item.outcomes is not None]
    if not asked:
        why = "both models said the same to every prompt, so there was nothing to judge"
        return measured, dict.fromkeys(("agreement", "agreement_kappa", "position_bias"), why)
    return _soundness(asked, measured, resamples)


def _soundness(
    asked: Sequence[Judged], measured: dict[str, Metric], resamples: int
) -> tuple[dict[str, Metric], dict[str, str]]:
    count, agree = len(asked), sum(len(set(item.outcomes or ())) == 1 for item in asked)
    bias, on = [item.bias for item in asked], "over pairs that differ"
    measured["agreement"] = share(agree, count, f"share of pairs of which both orders say the same, {on}")
    measured["position_bias"] = Metric(
        sum(bias) / (2 * count),
        "1",
        "share of verdicts for the answer shown first less that for the second; 0 is none, 1 always the first; "
        f"{on}; 95 % interval: percentile bootstrap over pairs",
        count,
        ratio_interval(bias, [2] * count, resamples),
    )
    table = _table(asked)
    kappa = _kappa(table.sum(axis=0))
    if np.isnan(kappa):
        return measured, {"agreement_kappa": "every verdict of both orders is the same, so chance explains all of it"}
    again = np.array([_kappa(row) for row in resampled_sums(table, resamples)])
    measured["agreement_kappa"] = Metric(
        kappa,
        "1",
        f"Cohen's kappa of the two orders, {on}; 95 % interval: percentile bootstrap over pairs, none where a resample "
        "has no kappa",
        count,
        percentiles(again) if count > 1 and not np.isnan(again).any() else None,
    )
    return measured, {}


def _table(asked: Sequence[Judged]) -> npt.NDArray[np.float64]:
    """One row a pair: a 1 where its two outcomes cross, (pairs, 9)."""
    table = np.zeros((len(asked), 9))
    for row, item in zip(table, asked, strict=True):
        one, two = item.outcomes or ("tie", "tie")
        row[3 * OUTCOMES.index(one) + OUTCOMES.index(two)] = 1
    return table


def _kappa(counts: npt.NDArray[np.float64]) -> float:
    """Cohen's kappa (1960) of a table of counts, (9,): agreement beyond what chance gives. NaN where chance is all."""
    shares = counts.reshape(3, 3) / counts.sum()
    chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    return float("nan") if chance >= 1 else (float(np.trace(shares)) - chance) / (1 - chance)
