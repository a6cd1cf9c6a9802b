"""What a model has to keep to for a role: limits by name, applied to a target by ``gates: {presets: {TARGET: NAME}}``.

The first token and the 95th percentile of ``interactive`` and ``chat`` are what MLPerf Inference asks of Llama 2 70B in
its interactive and server scenarios (there of the 99th percentile), and 0.99 of the reference's score is what it asks
of every benchmark. All other numbers are choices of this project: change them by what your users need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Limit(NamedTuple):
    """One limit of a preset: ``side`` is ``max`` or ``min``."""

    side: str
    number: float


class Preset(NamedTuple):
    """``limits`` are of metrics that must be measured; ``kept``: the least share of every score of the reference."""

    what: str
    limits: Mapping[str, Limit]
    kept: float


PRESETS: Mapping[str, Preset] = {
    "interactive": Preset(
        "someone reads along and waits for the first word",
        {
            "first_token_s": Limit("max", 0.45),
            "token_p50_s": Limit("max", 0.03),
            "token_p95_s": Limit("max", 0.04),
            "generation_tokens_per_second": Limit("min", 25),
            "kl_divergence": Limit("max", 0.05),
        },
        0.99,
    ),
    "chat": Preset(
        "answers appear faster than they are read",
        {
            "first_token_s": Limit("max", 2.0),
            "token_p50_s": Limit("max", 0.1),
            "token_p95_s": Limit("max", 0.2),
            "generation_tokens_per_second": Limit("min", 10),
            "kl_divergence": Limit("max", 0.05),
        },
        0.99,
    ),
    "batch": Preset(
        "nobody waits: much is read and written, and it must be right",
        {
            "prompt_tokens_per_second": Limit("min", 200),
            "generation_tokens_per_second": Limit("min", 20),
            "kl_divergence": Limit("max", 0.02),
        },
        0.99,
    ),
    "edge": Preset(
        "a small device that has other things to do",
        {
            "first_token_s": Limit("max", 2.0),
            "token_p50_s": Limit("max", 0.15),
            "token_p95_s": Limit("max", 0.25),
            "generation_tokens_per_second": Limit("min", 5),
            "run_memory": Limit("max", 2e9),
            "bytes": Limit("max", 1e9),
            "kl_divergence": Limit("max", 0.1),
        },
        0.95,
    ),
}
#: The name under which a preset's share of scores is changed or left out.
KEPT = "scores_kept"
