"""What an evaluation found document by document, read back from its files: what two of them are paired by.

``documents.jsonl`` has the sums of each document, ``answers.jsonl`` what was answered to each question. What they give
is compared with the metric that was recorded: where it is not the same, the file is of another form than this reads,
and nothing is paired by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ingot.core.paired import Sums

Row = Mapping[str, Any]


class _Form(NamedTuple):
    """The file that a metric is made of, and what each of its lines adds above and below the line of the fraction."""

    file: str
    top: Callable[[Row], float]
    bottom: Callable[[Row], float]
    exp: bool = False


def _tokens(row: Row) -> float:
    return float(row["tokens"])


def _one(_row: Row) -> float:
    return 1.0


def _right(row: Row) -> float:
    return float(row["exact"] if row["pattern"] is None else row["pattern"])


_FORMS: Mapping[str, _Form] = {
    "nll": _Form("documents.jsonl", lambda row: float(row["nll"]), _tokens),
    "perplexity": _Form("documents.jsonl", lambda row: float(row["nll"]), _tokens, exp=True),
    "bits_per_byte": _Form("documents.jsonl", lambda row: float(row["nll"]), lambda row: row["bytes"] * math.log(2)),
    "nll_difference": _Form("documents.jsonl", lambda row: row["nll"] - row["ref_nll"], _tokens),
    "kl_divergence": _Form("documents.jsonl", lambda row: float(row["kl"]), _tokens),
    "top1_agreement": _Form("documents.jsonl", lambda row: float(row["agree"]), _tokens),
    "exact_match": _Form("answers.jsonl", lambda row: float(row["exact"]), _one),
    "pattern_accuracy": _Form("answers.jsonl", _right, _one),
}


def read_sums(folder: Path, metric: str, value: object) -> Sums | None:
    """The sums of a metric that was recorded with a value; None where the files do not give that value."""
    form = _FORMS.get(metric)
    if form is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        rows = [json.loads(line) for line in (folder / form.file).read_text("utf-8").splitlines()]
        ids = tuple(str(row["id"]) for row in rows)
        sums = Sums(ids, tuple(map(form.top, rows)), tuple(map(form.bottom, rows)), form.exp)
        same = math.isclose(sums.value(), value, rel_tol=1e-9, abs_tol=1e-12)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return sums if same and len(set(ids)) == len(ids) else None
