"""The bootstrap interval: coverage on data whose truth is known, pairing, edge cases."""

from __future__ import annotations

import numpy as np

from ingot.kit.bootstrap import ratio_interval, share_interval, share_of_sums


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    """Documents of unequal length whose level varies: intervals that resample tokens would cover far less."""
    generator = np.random.default_rng(5)
    covered = naive = 0
    trials = 300
    for _ in range(trials):
        tokens = generator.integers(20, 200, 60)
        level = 2.0 + 0.5 * generator.standard_normal(60)
        interval = ratio_interval((level * tokens).tolist(), tokens.tolist(), 1000)
        assert interval is not None
        covered += interval[0] <= 2.0 <= interval[1]
        half = 1.96 * 0.5 / np.sqrt(tokens.sum())  # as if every token were its own sample
        naive += bool(abs(float((level * tokens).sum() / tokens.sum()) - 2.0) <= half)
    assert 0.90 <= covered / trials <= 0.98
    assert naive / trials < 0.5


def test_same_data_same_interval_and_it_holds_the_estimate() -> None:
    top, bottom = [1.0, 4.0, 9.0, 2.0], [1.0, 2.0, 3.0, 4.0]
    first = ratio_interval(top, bottom, 1000)
    assert first == ratio_interval(top, bottom, 1000)
    assert first is not None
    assert first[0] <= 1.6 <= first[1]


def test_constant_ratio_has_no_width_and_one_document_has_no_interval() -> None:
    assert ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 1000) == (2.0, 2.0)
    assert ratio_interval([2.0], [1.0], 1000) is None


def test_many_documents_in_blocks() -> None:
    interval = ratio_interval([1.0, 3.0] * 4000, [1.0] * 8000, 1200)
    assert interval is not None
    assert 1.95 < interval[0] < 2.0 < interval[1] < 2.05


def test_of_what_is_all_right_or_all_wrong_resampling_would_call_anything_certain() -> None:
    """Twenty of twenty: [1, 1] by the bootstrap alone, and gates ask for the lower end."""
    assert ratio_interval([2.0] * 20, [2.0] * 20, 1000) == (1.0, 1.0)
    assert share_of_sums([2, 4, 2] * 7, [2, 4, 2] * 7, 1000) == share_interval(21, 21)
    assert share_of_sums([0, 0], [3, 1], 1000) == share_interval(0, 2)
    assert share_of_sums([1, 0, 2], [1, 1, 2], 1000) == ratio_interval([1, 0, 2], [1, 1, 2], 1000)
    assert share_of_sums([1, 1], [2, 2], 1000) != share_interval(2, 2), "each is half right"
    assert share_of_sums([1], [1], 1000) is None


def test_a_share_of_sums_covers_what_is_true_near_its_end() -> None:
    """19 of 20 questions are right, each with one to three calls: more than a third of all samples have no fault."""
    generator = np.random.default_rng(0)
    covered = {ratio_interval: 0, share_of_sums: 0}
    for _ in range(400):
        calls = generator.integers(1, 4, 20)
        right = calls * (generator.random(20) < 0.95)
        for method in covered:
            low, high = method(right.tolist(), calls.tolist(), 1000) or (1, 0)
            covered[method] += low <= 0.95 <= high
    assert covered[share_of_sums] > 0.9 * 400
    assert covered[ratio_interval] < 0.7 * 400
