"""Which metrics tell how good a model is: what a new build is compared with an older one by."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from ingot.core.directions import AGAINST_ITSELF

_LOSSES = frozenset(("nll", "perplexity", "bits_per_byte", "kl_divergence"))
#: Scores of tasks, as the kinds name them; those of a harness may have the name of a group before or a filter after.
_SCORE = re.compile(
    r"(.+_)?(acc|acc_norm|accuracy|exact_match|pass_at_\d+|f1|f1_(lax|strict|macro)|rouge_l|bleu|irrelevance|json_valid"
    r"|fixture_hit_rate)(_(strict|flexible)[a-z0-9_]*)?"
)
#: By how much each may be worse before that is called a regression: so much comes of other rounding, and is no loss
#: that anybody would see. Scores count right answers: of them nothing is rounded.
MARGINS = {"nll": 0.001, "bits_per_byte": 0.0005, "kl_divergence": 0.001, "perplexity": 0.01}
#: Those that say the same twice: of each group the first that is there is enough.
_SAME = (("nll", "bits_per_byte", "perplexity"),)


def is_score(metric: str) -> bool:
    """Whether it is a share of what came out right, or a score alike."""
    return _SCORE.fullmatch(metric) is not None


def telling(metrics: Collection[str]) -> Iterator[str]:
    """Those by which one build is compared with another, in their order, each thing once."""
    again = {name for group in _SAME for name in [it for it in group if it in metrics][1:]}
    return (name for name in metrics if (name in _LOSSES or is_score(name)) and name not in again)


def depends_on_reference(kind: str, metric: str) -> bool:
    """Whether a measurement against another reference gives another number."""
    return kind != "evaluate" or metric in AGAINST_ITSELF
