"""What a training measured: the curves that its artifact holds, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ingot.core.stage import Metric
from ingot.kit.bootstrap import RESAMPLES, ratio_interval
from ingot.kit.train.loop import Step

if TYPE_CHECKING:
    from ingot.kit.train.outcome import Outcome

_PAIRS = "nats/pair"
_MOST_NATS = 700  # whose exponential is still a number
_TAIL = 8  # at most so many steps' mean loss stands for the start and for the end of training


def curves(outcome: Outcome) -> dict[str, Any]:
    """What ``training.json`` holds."""
    return {
        "format": 1,
        "loss_unit": outcome.unit,
        "train": [step.to_dict() for step in outcome.history],
        "eval": [{"step": scoring.step, "loss": outcome.held_loss(scoring)} for scoring in outcome.evals],
        "eval_documents": len(outcome.held_scored),
        "eval_tokens": sum(outcome.held_scored),
        "kept_step": outcome.kept,
        "packed": outcome.layout.kind == "packed",
        "layout": {"kind": outcome.layout.kind, "tokens": outcome.layout.tokens},
    }


def metrics(outcome: Outcome) -> dict[str, Metric]:
    """The metrics of a training."""
    history = outcome.history
    tail = max(1, min(_TAIL, len(history) // 2))  # the start and the end share no step
    tokens = sum(step.tokens for step in history)
    method = "wall time of the steps, without loading and scoring"
    if outcome.resumed_from is not None:
        method += f"; those before step {outcome.resumed_from} in an earlier attempt, less what was lost with it"
    found = {
        "train_loss_first": _mean_loss(outcome, history[:tail], f"mean over the first {tail} steps"),
        "train_loss_last": _mean_loss(outcome, history[-tail:], f"mean over the last {tail} steps"),
        "trainable_parameters": Metric(outcome.trainable, "parameters", "counted in the model"),
        "steps": Metric(len(history), "1", "optimizer steps taken"),
        "tokens": Metric(tokens, "tokens", "read in training, prompts included"),
        "tokens_per_second": Metric(tokens / outcome.seconds, "tokens/s", "tokens over the time of the steps"),
        "train_seconds": Metric(outcome.seconds, "s", method),
    }
    if outcome.padding is not None:
        how = "documents laid end to end, measured to be kept apart" if outcome.layout.kind == "packed" else "one a row"
        found["padding"] = Metric(outcome.padding, "1", f"share of tokens that only filled rows up; {how}")
    if outcome.device_bytes is not None:
        found["device_peak_bytes"] = Metric(outcome.device_bytes, "B", "most memory that torch held on the GPU")
    return {**found, **_held_out(outcome)}


def _held_out(outcome: Outcome) -> dict[str, Metric]:
    if not outcome.evals:
        return {}
    sums = outcome.evals[0].sums, outcome.after().sums
    how = "held-out pairs" if outcome.unit == _PAIRS else "held-out documents, token-weighted"
    found = before_and_after("eval_loss", sums, outcome.held_scored, outcome.unit, how)
    return found | (_perplexities(found) if outcome.unit == "nats/token" else {})


def before_and_after(
    name: str, sums: tuple[Sequence[float], Sequence[float]], counts: Sequence[int], unit: str, how: str
) -> dict[str, Metric]:
    """What training changed: the means of a figure before and after it, and of the change, paired by what is scored.

    ``sums`` are those of each document before and after, ``counts`` its scored parts.
    """
    change = [after - before for before, after in zip(*sums, strict=True)]
    items = "pairs" if unit == _PAIRS else "documents"
    method = f"{how}; interval by bootstrap over {items}, {RESAMPLES} resamples"
    return {
        f"{name}_{when}": Metric(
            sum(values) / sum(counts), unit, f"paired by {items[:-1]}; {method}" if values is change else method,
            n=len(counts), interval=ratio_interval(values, counts, RESAMPLES),
        )
        for when, values in (("before", sums[0]), ("after", sums[1]), ("change", change))
    }  # fmt: skip


def _perplexities(found: Mapping[str, Metric]) -> dict[str, Metric]:
    """The exponentials of the losses before and after, where they are numbers."""
    return {
        f"perplexity_{when}": Metric(
            math.exp(loss.value), "1", f"exponential of eval_loss_{when}", loss.n, _exponentials(loss.interval)
        )
        for when in ("before", "after")
        if (loss := found[f"eval_loss_{when}"]).value < _MOST_NATS and (loss.interval or (0, 0))[1] < _MOST_NATS
    }


def _exponentials(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The exponentials of an interval's ends."""
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _mean_loss(outcome: Outcome, steps: Sequence[Step], method: str) -> Metric:
    """The mean loss of some steps by scored part."""
    scored = sum(step.scored_tokens for step in steps)
    value = sum(step.loss * step.scored_tokens for step in steps) / scored
    return Metric(value, outcome.unit, method, n=scored)
