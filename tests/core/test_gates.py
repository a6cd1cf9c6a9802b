"""Gates judge recorded metrics: limits, bounds, two measurements beside each other, samples that do not tell."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from ingot.core.gates import Gate, Other, Side, judge, passes, split_gate, worst
from ingot.core.pairs import Sums, combined, needed, paired

METRICS: Mapping[str, Mapping[str, object]] = {
    "kl_divergence": {"value": 0.2, "unit": "nats/token", "method": "m", "n": 10, "interval": [0.1, 0.3]},
    "bytes": {"value": 100, "unit": "B", "method": "m"},
    "broken": {"value": float("nan"), "unit": "1", "method": "m"},
    "word": {"value": "1"},
    "zero": {"value": 0},
}
SIDE = Side(METRICS, "a" * 64)
KL = Gate("report.gguf@Q4_K_M.kl_divergence")


@pytest.mark.parametrize(
    ("gate", "finding"),
    [
        (replace(KL, max=0.5), "kept"),
        (replace(KL, max=0.2), "kept"),
        (replace(KL, max=0.19), "broken"),
        (replace(KL, min=0.2), "kept"),
        (replace(KL, min=0.21), "broken"),
        (replace(KL, max=0.25, bound="upper"), "broken"),
        (replace(KL, max=0.3, bound="upper"), "kept"),
        (replace(KL, min=0.15, bound="lower"), "broken"),
        (replace(KL, max=0.15, bound="lower"), "kept"),
        (replace(KL, max=0.3, bound="confident"), "kept"),
        (replace(KL, max=0.29, bound="confident"), "undecided"),
        (replace(KL, max=0.1, bound="confident"), "undecided"),
        (replace(KL, max=0.09, bound="confident"), "broken"),
        (replace(KL, min=0.1, bound="confident"), "kept"),
        (replace(KL, min=0.31, bound="confident"), "broken"),
        (replace(KL, max=0.2, bound="proven"), "kept"),
        (replace(KL, max=0.19, bound="proven"), "undecided"),
        (replace(KL, max=0.09, bound="proven"), "broken"),
    ],
)
def test_limit_and_bound(gate: Gate, finding: str) -> None:
    (verdict,) = judge(gate, SIDE)
    assert verdict.finding == finding
    assert (verdict.target, verdict.metric) == ("report.gguf@Q4_K_M", "kl_divergence")


def test_two_limits_are_two_verdicts() -> None:
    low, high = judge(Gate("gguf.bytes", max=50, min=10), SIDE)
    assert (low.side, low.word, high.side, high.word) == ("min", "pass", "max", "fail")
    assert passes([low, high]) is False
    assert passes([low]) is True
    assert (worst([low, high]), worst([low]), worst([])) == ("fail", "pass", None)
    assert str(high) == "gguf.bytes ≤ 50: FAIL at 100"


def test_metric_after_the_last_dot() -> None:
    (verdict,) = judge(Gate("gguf@0.5.bytes", max=100), SIDE)
    assert (verdict.target, verdict.word) == ("gguf@0.5", "pass")
    for bad in ("bytes", ".bytes", "target."):
        with pytest.raises(ValueError, match=r"TARGET\.METRIC"):
            split_gate(bad)


def test_unknown_is_neither_pass_nor_fail() -> None:
    (metric,) = judge(Gate("r.kl_divergense", max=1), SIDE)
    (target,) = judge(Gate("r.bytes", max=1), None)
    (interval,) = judge(Gate("r.bytes", max=1000, bound="upper"), SIDE)
    assert [verdict.passed for verdict in (metric, target, interval)] == [None, None, None]
    assert metric.nearest == ("kl_divergence",)
    assert "nearest: kl_divergence" in str(metric)
    assert "not been measured" in target.reason
    assert "(upper end of its interval)" in str(interval)
    assert "without an interval" in interval.reason
    assert passes([metric]) is None


def test_nan_and_non_numbers_do_not_pass() -> None:
    for gate in (Gate("t.broken", max=1), Gate("t.broken", min=1)):
        assert judge(gate, SIDE)[0].word == "fail"
    (text,) = judge(Gate("t.word", max=1), SIDE)
    assert text.word == "unknown"


@pytest.mark.parametrize(
    ("severity", "undecided", "limit", "word", "passed"),
    [
        ("fail", "warn", 0.05, "fail", False),
        ("warn", "warn", 0.05, "warn", True),
        ("fail", "warn", 0.25, "warn", True),
        ("fail", "pass", 0.25, "pass", True),
        ("fail", "fail", 0.25, "fail", False),
        ("warn", "fail", 0.25, "warn", True),
        ("warn", "pass", 0.5, "pass", True),
    ],
)
def test_what_follows_from_what_was_found(severity: str, undecided: str, limit: float, word: str, passed: bool) -> None:
    gate = replace(KL, max=limit, bound="confident", severity=severity, undecided=undecided)  # type: ignore[arg-type]
    (verdict,) = judge(gate, SIDE)
    assert (verdict.word, verdict.passed) == (word, passed)


def test_a_warning_stops_nothing_though_nothing_measured_it() -> None:
    (verdict,) = judge(Gate("t.nothing", max=1, severity="warn"), SIDE)
    assert (verdict.finding, verdict.word, verdict.passed) == ("unknown", "warn", True)


def test_how_many_samples_would_tell() -> None:
    """The interval reaches 0.1 above the value and the limit is 0.05 above it: four times the samples halve it."""
    (verdict,) = judge(replace(KL, max=0.25, bound="confident"), SIDE)
    assert verdict.reason == "not enough samples to say: about 40 samples would tell, 10 were measured"
    counted = {**METRICS, "tokens": {"value": 10}, "documents": {"value": 3}}
    (verdict,) = judge(replace(KL, max=0.25, bound="confident"), Side(counted))
    assert "about 12 documents would tell, 3 were measured" in verdict.reason
    assert "too near the limit" in needed(1.0, (0.5, 1.5), 1.0, (10, "samples"))
    assert needed(1.0, (0.0, 2.0), 1.5, None) == ": about 4 times as many would tell"


# --- beside another measurement ---------------------------------------------------------------------------------------

OTHER = Side({"kl_divergence": {"value": 0.1, "n": 10, "interval": [0.05, 0.15]}, "bytes": {"value": 50}}, "b" * 64)


def beside(gate: Gate, other: Side | None = OTHER, **more: object) -> object:
    (verdict,) = judge(replace(gate, other="report.base"), SIDE, Other("report.base", other, **more))  # type: ignore[arg-type]
    return verdict


@pytest.mark.parametrize(
    ("gate", "value", "word"),
    [
        (replace(KL, max=2.0, form="ratio"), 2.0, "pass"),
        (replace(KL, max=1.9, form="ratio"), 2.0, "fail"),
        (replace(KL, max=0.1, form="difference"), 0.1, "pass"),
        (replace(KL, max=0.09, form="difference"), 0.1, "fail"),
        (Gate("r.bytes", max=2, form="ratio"), 2.0, "pass"),
        (Gate("r.bytes", max=49, form="difference"), 50.0, "fail"),
    ],
)
def test_a_ratio_and_a_difference(gate: Gate, value: float, word: str) -> None:
    (verdict,) = judge(replace(gate, other="report.base"), SIDE, Other("report.base", OTHER))
    assert verdict.value == pytest.approx(value)
    assert verdict.word == word
    assert verdict.compared is not None
    assert verdict.compared.digest == "b" * 64
    assert verdict.compared.method == ("values" if verdict.metric == "bytes" else "intervals")
    sign = {"ratio": "/", "difference": "−"}[gate.form or "ratio"]
    assert str(verdict).startswith(f"{gate.name} {sign} report.base ≤ ")


def test_an_interval_from_both_intervals_is_that_of_independent_numbers() -> None:
    low, high = combined((0.2, (0.1, 0.3)), (0.1, (0.05, 0.15)), "difference") or (0, 0)
    assert (low, high) == pytest.approx((0.1 - math.hypot(0.1, 0.05), 0.1 + math.hypot(0.1, 0.05)))
    ratio = combined((2.0, (1.0, 4.0)), (1.0, None), "ratio")
    assert ratio == pytest.approx((1.0, 4.0)), "what has no interval is exact"
    assert combined((1.0, None), (1.0, None), "ratio") is None
    assert combined((1.0, (0.0, 2.0)), (1.0, None), "ratio") is None, "there is no logarithm of 0"


def test_what_cannot_be_compared_is_not_known_or_says_why_there_is_nothing_yet() -> None:
    gate = replace(KL, max=1.05, form="ratio", other="active")
    (absent,) = judge(gate, SIDE, Other("active", None, "it is gone"))
    (new,) = judge(gate, SIDE, Other("active", None, "nothing was promoted", new=True))
    (none,) = judge(gate, SIDE)
    (zero,) = judge(replace(gate, name="r.zero"), SIDE, Other("active", SIDE))
    (other,) = judge(replace(gate, name="r.bytes"), SIDE, Other("active", Side({})))
    assert [it.word for it in (absent, new, none, zero, other)] == ["unknown", "none", "unknown", "unknown", "unknown"]
    assert new.passed is True
    assert str(new).endswith(": nothing was promoted")
    assert "is 0" in zero.reason
    assert "of active: nothing measures 'bytes'" in other.reason


def sums(values: list[float], tokens: list[int], names: str = "d") -> Sums:
    return Sums(tuple(f"{names}{at}" for at in range(len(values))), tuple(values), tuple(map(float, tokens)))


def drawn(count: int, shift: float) -> tuple[Sums, Sums]:
    """Two models on the same documents, which are of very unlike difficulty; one is a little worse everywhere."""
    draw = random.Random(1)
    tokens = [draw.randint(5, 50) for _ in range(count)]
    hard = [draw.uniform(1, 9) for _ in range(count)]
    noise = [draw.gauss(0, 0.02) for _ in range(count)]
    ours = [(h + shift + e) * t for h, e, t in zip(hard, noise, tokens, strict=True)]
    return sums(ours, tokens), sums([h * t for h, t in zip(hard, tokens, strict=True)], tokens)


def side_of(of: Sums, interval: tuple[float, float]) -> Side:
    metric = {"value": of.value(), "interval": list(interval), "n": 100}
    return Side({"kl_divergence": metric}, "c" * 64, lambda _metric: of)


def test_pairs_tell_what_two_intervals_cannot() -> None:
    worse, base = drawn(40, 0.05)
    one, two = side_of(worse, (3, 7)), side_of(base, (3, 7))
    gate = replace(KL, max=0, form="difference", other="active", bound="confident")
    (verdict,) = judge(gate, one, Other("active", two))
    assert verdict.finding == "broken"
    assert verdict.compared is not None
    assert (verdict.compared.method, verdict.compared.documents) == ("paired", 40)
    assert verdict.interval is not None
    assert verdict.interval[0] < 0.05 < verdict.interval[1]
    assert "paired over 40 documents" in str(verdict)
    others = replace(two, sums=lambda _metric: replace(base, ids=tuple(f"e{at}" for at in range(40))))
    (verdict,) = judge(gate, one, Other("active", others))
    assert verdict.finding == "undecided", "other documents are no pairs"
    assert verdict.compared is not None
    assert verdict.compared.method == "intervals"


def test_paired_intervals_are_those_of_the_bootstrap_of_the_kit() -> None:
    """The same quantity drawn by numpy; and many documents, which are drawn in blocks."""
    pytest.importorskip("numpy")
    from ingot.kit.bootstrap import ratio_interval

    for count in (40, 2500):
        ours, theirs = drawn(count, 0.05)
        differences = [a - b for a, b in zip(ours.tops, theirs.tops, strict=True)]
        expected = ratio_interval(differences, ours.bottoms, 4000)
        assert expected is not None
        width = expected[1] - expected[0]
        assert paired(ours, theirs, "difference") == pytest.approx(expected, abs=0.12 * width)


def test_one_document_says_nothing_and_a_ratio_to_nothing_is_none() -> None:
    one = sums([1.0], [1])
    assert paired(one, one, "difference") is None
    never = sums([0.0, 1.0], [1, 1])
    assert paired(sums([1.0, 1.0], [1, 1]), never, "ratio") is None, "a draw without a right answer has no ratio"


def test_perplexities_are_paired_as_such() -> None:
    ours, theirs = (replace(it, exp=True) for it in drawn(40, 0.05))
    low, high = paired(ours, theirs, "ratio") or (0, 0)
    assert low < math.exp(0.05) < high
    assert high - low < 0.05
