"""From the times of runs to metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingot.core.stage import Metric
from ingot.kit.runtime.timing import Run

_PERCENTILES = (("token_p50_s", 50), ("token_p95_s", 95), ("token_p99_s", 99))


@dataclass(frozen=True)
class Measured:
    """The metrics of an export and of what was measured beside it, and what belongs into the receipt's notes."""

    metrics: dict[str, Metric]
    notes: dict[str, object]


def figures(runs: Sequence[Run], prompt_tokens: int, how: str, memory: int | None) -> dict[str, Metric]:
    """The metrics of one runtime. ``how`` says on what it ran; ``memory`` is None where the system does not say it."""
    steps = [step for run in runs for step in run.steps]
    firsts = [run.first for run in runs]
    generations = [len(run.steps) / sum(run.steps) for run in runs]
    prompt, repeats = f"a prompt of {prompt_tokens} tokens read at once", f"{how}; median of {len(runs)} runs"
    found = {
        "first_token_s": Metric(median(firsts), "s", f"until the first token after {prompt}, {repeats}", len(runs))
    }
    for name, share in _PERCENTILES:
        method = f"{share}th percentile of the seconds a token, one by one, all runs together, {how}"
        found[name] = Metric(percentile(steps, share), "s", method, len(steps))
    found["prompt_tokens_per_second"] = Metric(
        median([prompt_tokens / first for first in firsts]), "tokens/s", f"{prompt}, {repeats}", len(runs)
    )
    found["generation_tokens_per_second"] = Metric(
        median(generations), "tokens/s", f"{len(runs[0].steps)} tokens one by one, {repeats}", len(runs)
    )
    if memory is not None:
        method = f"most anonymous memory seen of the process that loaded and ran it, looked at every 20 ms, {how}"
        found["run_memory"] = Metric(memory, "B", method)
    return found


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    return percentile(values, 50)


def percentile(values: Sequence[float], share: float) -> float:
    """Below which ``share`` per cent of the values lie; between two neighbours in proportion."""
    return float(np.quantile(np.asarray(values, np.float64), share / 100))
