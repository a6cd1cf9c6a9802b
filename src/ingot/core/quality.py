"""Which metrics tell how good a model is, and which way is better: what a new build is compared with the old one by."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

Better = Literal["lower", "higher"]

_LOWER = frozenset(("nll", "perplexity", "bits_per_byte", "kl_divergence"))
#: Scores of tasks, as the kinds name them; those of a harness may have the name of a group before or a filter after.
_SCORE = re.compile(
    r"(.+_)?(acc|acc_norm|accuracy|exact_match|em|pass_at_\d+|f1|f1_(lax|strict|macro)|mcc|mc[12]|rouge_?[12l]|bleu"
    r"|irrelevance|json_valid|fixture_hit_rate)(_(strict|flexible|none)[a-z0-9_]*)?"
)
#: Those that say the same twice: of each group the first that is there is enough.
_SAME = (("nll", "bits_per_byte", "perplexity"),)
#: Metrics of ``evaluate`` that depend on the model that it was compared with.
_OF_REFERENCE = frozenset(
    (
        "nll_difference",
        "bits_per_byte_difference",
        "kl_divergence",
        "kl_p99",
        "top1_agreement",
    )
)


def better(metric: str) -> Better | None:
    """Which way is better; None for what does not tell how good a model is, or does not tell it alone."""
    if metric in _LOWER:
        return "lower"
    return "higher" if _SCORE.fullmatch(metric) else None


def is_score(metric: str) -> bool:
    """Whether it is a share of something that came out right, or a score alike."""
    return better(metric) == "higher"


def telling(metrics: Collection[str]) -> Iterator[str]:
    """Those by which one build is compared with another, in their order, each thing once."""
    again = {name for group in _SAME for name in [it for it in group if it in metrics][1:]}
    return (name for name in metrics if better(name) is not None and name not in again)


def depends_on_reference(kind: str, metric: str) -> bool:
    """Whether a measurement against another reference gives another number."""
    return kind != "evaluate" or metric in _OF_REFERENCE
