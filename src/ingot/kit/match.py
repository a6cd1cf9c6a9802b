"""Answers against the answers of a data set: exactly, by ROUGE-L and by BLEU.

Both scores are those of the libraries that papers cite: rouge-score (a port of Lin's script) and sacrebleu. ROUGE-L is
the F-measure of an answer, its mean over answers; BLEU is one number for all answers together. White space around and
runs of it do not count for an exact match, and an answer of nothing else is never one.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics.bleu import BLEU

from ingot.core.stage import Metric
from ingot.kit.bootstrap import percentiles, ratio_interval, resampled_sums, share

Normalization = Literal["space", "words"]
_NORMALIZED = {
    "space": "runs of white space count as one space",
    "words": "small letters, without punctuation, runs of white space count as one space",
}
_ORDERS = 4


@dataclass(frozen=True)
class Matched:
    """One answer against that of the data set; ``rouge_l`` None where the library reads no word of the latter."""

    id: str
    exact: bool
    rouge_l: float | None


def normalized(text: str, how: Normalization) -> str:
    """A text as it is compared."""
    if how == "words":
        text = "".join(char for char in text.casefold() if not unicodedata.category(char).startswith("P"))
    return " ".join(text.split())


def match(ids: Sequence[str], pairs: Sequence[tuple[str, str]], how: Normalization, *, stem: bool) -> list[Matched]:
    """What is found of each pair of an answer and the wanted one."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    scorer, tokenizer = RougeScorer(["rougeL"], use_stemmer=stem), DefaultTokenizer(stem)
    found = []
    for name, (said, wanted) in zip(ids, pairs, strict=True):
        one = normalized(said, how)
        rouge = float(scorer.score(wanted, said)["rougeL"].fmeasure) if tokenizer.tokenize(wanted) else None
        found.append(Matched(name, bool(one) and one == normalized(wanted, how), rouge))
    return found


def metrics(
    found: Sequence[Matched],
    pairs: Sequence[tuple[str, str]],
    *,
    how: Normalization,
    tokenize: str,
    resamples: int,
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The scores with their 95 % intervals over answers, and why the rest is not measured."""
    count, exact = len(found), sum(item.exact for item in found)
    measured = {
        "exact_match": share(exact, count, f"share of answers that are the row's own: {_NORMALIZED[how]}"),
        "bleu": _bleu(pairs, tokenize, resamples),
    }
    scores = [item.rouge_l for item in found if item.rouge_l is not None]
    if len(scores) < count:
        what = f"rouge-score reads words of a-z and 0-9 only, and {count - len(scores)} of {count} rows have none"
        return measured, {"rouge_l": what}
    measured["rouge_l"] = Metric(
        sum(scores) / count,
        "1",
        "F-measure of the longest common subsequence of words (rouge-score), mean over answers; "
        "95 % interval: percentile bootstrap over answers",
        count,
        ratio_interval(scores, [1] * count, resamples),
    )
    return measured, {}


def _bleu(pairs: Sequence[tuple[str, str]], tokenize: str, resamples: int) -> Metric:
    """Corpus BLEU; each resample is scored from the sums of what was counted of its answers."""
    library = BLEU(tokenize=tokenize, force=True)
    score = library.corpus_score([said for said, _ in pairs], [[wanted for _, wanted in pairs]])
    return Metric(
        float(score.score),
        "%",
        f"corpus BLEU ({library.get_signature()}); 95 % interval: percentile bootstrap over answers",
        len(pairs),
        _bleu_interval(pairs, tokenize, resamples),
    )


def _bleu_interval(pairs: Sequence[tuple[str, str]], tokenize: str, resamples: int) -> tuple[float, float] | None:
    if len(pairs) < 2:
        return None
    # effective_order changes the score of one answer, which nobody reads, and not what was counted in it
    library = BLEU(tokenize=tokenize, force=True, effective_order=True)
    scores = [library.sentence_score(said, [wanted]) for said, wanted in pairs]
    counted = np.array([[it.sys_len, it.ref_len, *it.counts, *it.totals] for it in scores], dtype=np.float64)
    sums = resampled_sums(counted, resamples).astype(np.int64)
    return percentiles([_score(row.tolist()) for row in sums])


def _score(row: list[int]) -> float:
    made: Any = BLEU.compute_bleu(
        correct=row[2 : 2 + _ORDERS],
        total=row[2 + _ORDERS :],
        sys_len=row[0],
        ref_len=row[1],
        smooth_method="exp",
        max_ngram_order=_ORDERS,
    )
    return float(made.score)


def write(path: Path, found: Sequence[Matched]) -> None:
    """One line an answer."""
    lines = [json.dumps(asdict(item), sort_keys=True) + "\n" for item in found]
    path.write_text("".join(lines), encoding="utf-8")
