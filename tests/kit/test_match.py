"""Scores of answers against texts: equal to the libraries called directly, with intervals over answers."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from ingot.kit import match
from ingot.kit.bootstrap import SEED, ratio_interval, share_interval

PAIRS = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("the  cat sat on\nthe mat.", "The cat sat on the mat."),
    ("A dog ran through the big garden and slept.", "The dog ran in the garden, and then it slept well."),
    ("Nothing of this at all", "Birds were singing in the morning sun over there."),
    ("", "An answer was wanted here, and none was given."),
    ("running dogs played", "a dog plays and runs in the park every day"),
]
IDS = [str(index) for index in range(len(PAIRS))]


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "none"])
def test_scores_are_those_of_the_libraries(stem: bool, tokenize: str) -> None:
    found = match.match(IDS, PAIRS, "space", stem=stem)
    measured, missing = match.metrics(found, PAIRS, how="space", tokenize=tokenize, resamples=1000)
    rouge = RougeScorer(["rougeL"], use_stemmer=stem)
    wanted = [rouge.score(target, said)["rougeL"].fmeasure for said, target in PAIRS]
    bleu = BLEU(tokenize=tokenize).corpus_score([said for said, _ in PAIRS], [[target for _, target in PAIRS]])
    assert missing == {}
    assert measured["bleu"].value == bleu.score > 5
    assert measured["rouge_l"].value == pytest.approx(sum(wanted) / len(wanted), rel=1e-15)
    assert [item.rouge_l for item in found] == wanted
    assert measured["rouge_l"].interval == ratio_interval(wanted, [1] * len(wanted), 1000)
    assert f"tok:{tokenize}" in measured["bleu"].method


def test_the_interval_of_bleu_is_that_of_scoring_every_resample_anew() -> None:
    found = match.match(IDS, PAIRS, "space", stem=False)
    measured, _ = match.metrics(found, PAIRS, how="space", tokenize="13a", resamples=1000)
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.integers(0, len(PAIRS), (1000, len(PAIRS)))
    again = [
        BLEU(force=True).corpus_score([PAIRS[at][0] for at in row], [[PAIRS[at][1] for at in row]]).score
        for row in drawn[:200]
    ]
    narrow, _ = match.metrics(found, PAIRS, how="space", tokenize="13a", resamples=200)
    assert narrow["bleu"].interval == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), rel=1e-12)
    low, high = measured["bleu"].interval or (0, 0)
    assert low < measured["bleu"].value < high


@pytest.mark.parametrize(
    ("how", "right"),
    [("space", [True, False, False, False]), ("words", [True, True, True, False])],
)
def test_what_an_exact_match_overlooks_is_stated(how: match.Normalization, right: list[bool]) -> None:
    pairs = [("  a b\n", "a  b"), ("A b.", "a b"), ("«a»  B!", "a b"), ("a b c", "a b")]
    found = match.match(["1", "2", "3", "4"], pairs, how, stem=False)
    assert [item.exact for item in found] == right
    measured, _ = match.metrics(found, pairs, how=how, tokenize="13a", resamples=1000)
    assert measured["exact_match"].value == sum(right) / 4
    assert measured["exact_match"].interval == share_interval(sum(right), 4)
    assert ("punctuation" in measured["exact_match"].method) == (how == "words")


def test_an_empty_answer_is_never_right() -> None:
    assert not match.match(["1"], [("...", "!?")], "words", stem=False)[0].exact


def test_answers_that_are_the_wanted_ones_have_full_marks() -> None:
    pairs = [(wanted, wanted) for _, wanted in PAIRS]
    found = match.match(IDS, pairs, "space", stem=False)
    measured, _ = match.metrics(found, pairs, how="space", tokenize="13a", resamples=1000)
    assert {name: metric.value for name, metric in measured.items()} == pytest.approx(
        {"exact_match": 1, "rouge_l": 1, "bleu": 100}
    )


def test_a_script_that_rouge_does_not_read_gets_a_reason_and_no_zero() -> None:
    pairs = [("кошка сидит", "кошка сидит"), ("a cat", "a cat")]
    found = match.match(["1", "2"], pairs, "space", stem=False)
    measured, missing = match.metrics(found, pairs, how="space", tokenize="13a", resamples=1000)
    assert "rouge_l" not in measured
    assert missing == {"rouge_l": "rouge-score reads words of a-z and 0-9 only, and 1 of 2 rows have none"}
    assert measured["exact_match"].value == 1


def test_one_answer_has_no_interval_over_answers() -> None:
    found = match.match(["1"], PAIRS[2:3], "space", stem=False)
    measured, _ = match.metrics(found, PAIRS[2:3], how="space", tokenize="13a", resamples=1000)
    assert measured["bleu"].interval is None
    assert measured["rouge_l"].interval is None
