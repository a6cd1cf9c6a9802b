"""The two scalings of confidence, fitted in float64, the same at every run.

Temperature (Guo et al. 2017): all logits divided by the T that minimizes the negative log-likelihood of the right
tokens. In β = 1/T that is convex: Newton's method, held between bounds by bisection. Platt (1999): the log-odds x of
the likeliest token become a·x + b, a logistic regression of being right on x, with Platt's smoothed targets; Newton's
method with halved steps (Lin, Lin and Weng 2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput
from ingot.kit.confidence.logits import Floats, Logits, chance

#: Temperatures that are looked at.
LOWEST, HIGHEST = 0.01, 100.0
_STEPS, _EXACT = 60, 1e-10


@dataclass(frozen=True)
class Fit:
    """Fitted parameters, and for each row the gradient and the Hessian of its loss there: what an interval needs."""

    values: tuple[float, ...]
    gradient: Floats
    hessian: Floats


def fit_temperature(logits: Logits, report: Callable[[int], None] = lambda _: None) -> Fit:
    """β = 1/T; ``report`` gets the number of passes over the logits.

    RefusedInput (E-CALIBRATE-BOUND) where no temperature between the bounds is best: the right token is always, or as
    good as never, the likeliest.
    """
    passes = 0

    def slopes(beta: float) -> tuple[Floats, Floats]:
        nonlocal passes
        passes += 1
        report(passes)
        found = [_slopes(rows, right, beta) for rows, right in logits.blocks()]
        return np.concatenate([one for one, _ in found]), np.concatenate([two for _, two in found])

    low, high = 1 / HIGHEST, 1 / LOWEST
    for bound, wrong_side in ((low, 1), (high, -1)):
        if wrong_side * slopes(bound)[0].mean() >= 0:
            raise RefusedInput(
                "E-CALIBRATE-BOUND",
                f"no temperature between {LOWEST} and {HIGHEST} is best: the likelihood still rises at {1 / bound:g}",
                facts=["the model is right, or wrong, at nearly every position that the fit looks at"],
                hint="more documents, or other ones",
            )
    beta = 1.0
    for _ in range(_STEPS):
        first, second = slopes(beta)
        gradient, curvature = float(first.mean()), float(second.mean())
        low, high = (beta, high) if gradient < 0 else (low, beta)
        new = beta - gradient / curvature if curvature > 0 else low
        new = new if low < new < high else (low * high) ** 0.5
        if abs(new - beta) <= _EXACT * beta:
            break
        beta = new
    return Fit((beta,), first[:, None], second[:, None, None])


def _slopes(rows: Floats, right: npt.NDArray[np.int64], beta: float) -> tuple[Floats, Floats]:
    """First and second derivative by β of log Σ exp(β·z) - β·z_right: E[z] - z_right, and the variance of z."""
    at_right = rows[np.arange(len(rows)), right]
    shifted = rows - rows.max(axis=1, keepdims=True)
    weights = np.exp(beta * shifted)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * shifted).sum(axis=1)
    spread = (weights * (shifted - mean[:, None]) ** 2).sum(axis=1)
    return mean + rows.max(axis=1) - at_right, spread


def fit_platt(logit: Floats, right: npt.NDArray[np.bool_]) -> Fit:
    """(a, b) of the log-odds a·x + b."""
    yes, no = int(right.sum()), int((~right).sum())
    target = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    design = np.stack([logit, np.ones_like(logit)], axis=1)

    def loss(values: Floats) -> float:
        score = design @ values
        return float((np.logaddexp(0, score) - target * score).mean())

    values = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        gradient, hessian = _logistic(design, target, values)
        step = np.linalg.solve(hessian.mean(axis=0) + 1e-12 * np.eye(2), gradient.mean(axis=0))
        here, share = loss(values), 1.0
        while loss(values - share * step) > here and share > _EXACT:
            share /= 2
        values = values - share * step
        if np.abs(share * step).max() <= _EXACT * max(1.0, float(np.abs(values).max())):
            break
    return Fit((float(values[0]), float(values[1])), *_logistic(design, target, values))


def _logistic(design: Floats, target: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Gradient and Hessian of each row's loss."""
    found = chance(design @ values)
    gradient = (found - target)[:, None] * design
    hessian = (found * (1 - found))[:, None, None] * design[:, :, None] * design[:, None, :]
    return gradient, hessian
