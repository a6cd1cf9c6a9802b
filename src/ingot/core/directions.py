"""Which way a metric is better, and what it is of the reference against itself; names and nothing else."""

from __future__ import annotations

import re
from typing import Literal

Better = Literal["lower", "higher"]

_LOWER = frozenset(
    (
        *(
            "nll",
            "perplexity",
            "bits_per_byte",
            "nll_difference",
            "bits_per_byte_difference",
            "kl_divergence",
            "kl_p99",
        ),
        *("calibration_error", "bytes", "bits_per_weight", "parameters", "cost", "gpu_hours", "energy_per_token"),
        *("position_bias", "loss_rate", "model_bytes", "peak_bytes", "max_error", "max_difference"),
    )
)
_HIGHER = frozenset(
    (
        *("top1_agreement", "exact_match", "pattern_accuracy", "accuracy", "acc", "acc_norm", "irrelevance", "bleu"),
        *("json_valid", "fixture_hit_rate", "win_rate", "rouge_l", "sparsity", "sessions", "answers_ended"),
    )
)
_LOWER_FORMS = re.compile(r".*(_latency|_ms|_s|_seconds|_error|_per_token|_difference)(_p\d\d)?")
_HIGHER_FORMS = re.compile(
    r"(.*_per_second|acc_.*|.*_acc|f1.*|precision.*|recall.*|exact_match_.*|pass_at_\d+|rouge.*)"
)

#: What these are where the reference is compared with itself: by definition, not by measurement.
AGAINST_ITSELF = {
    "nll_difference": 0.0,
    "bits_per_byte_difference": 0.0,
    "kl_divergence": 0.0,
    "kl_p99": 0.0,
    "top1_agreement": 1.0,
}


def better(metric: str) -> Better | None:
    """Which way a metric is better; None where its name does not tell. A task's prefix does not matter."""
    name = metric.rpartition(".")[2]
    if name in _LOWER:
        return "lower"
    if name in _HIGHER or _HIGHER_FORMS.fullmatch(name):
        return "higher"
    return "lower" if _LOWER_FORMS.fullmatch(name) else None
