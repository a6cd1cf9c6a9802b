"""Gates judge recorded metrics: limits, bounds, unknown names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ingot.core.gates import judge, passes, split_gate

METRICS: dict[str, dict[str, dict[str, object]]] = {
    "report.gguf@Q4_K_M": {
        "kl_divergence": {"value": 0.2, "unit": "nats/token", "method": "m", "n": 10, "interval": [0.1, 0.3]},
        "bytes": {"value": 100, "unit": "B", "method": "m"},
        "broken": {"value": float("nan"), "unit": "1", "method": "m"},
    },
    "gguf@0.5": {"bytes": {"value": 7, "unit": "B", "method": "m"}},
}


def metrics_of(target: str) -> Mapping[str, Mapping[str, object]] | None:
    return METRICS.get(target)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ({"max": 0.5}, True),
        ({"max": 0.2}, True),
        ({"max": 0.19}, False),
        ({"min": 0.2}, True),
        ({"min": 0.21}, False),
        ({"max": 0.25, "bound": "upper"}, False),
        ({"max": 0.3, "bound": "upper"}, True),
        ({"min": 0.15, "bound": "lower"}, False),
        ({"max": 0.15, "bound": "lower"}, True),
    ],
)
def test_limit_and_bound(gate: dict[str, object], expected: bool) -> None:
    (verdict,) = judge({"report.gguf@Q4_K_M.kl_divergence": gate}, metrics_of)
    assert verdict.passed is expected
    assert (verdict.target, verdict.metric) == ("report.gguf@Q4_K_M", "kl_divergence")


def test_two_limits_are_two_verdicts() -> None:
    low, high = judge({"report.gguf@Q4_K_M.bytes": {"max": 50, "min": 10}}, metrics_of)
    assert (low.side, low.passed, high.side, high.passed) == ("min", True, "max", False)
    assert passes([low, high]) is False
    assert passes([low]) is True
    assert "FAIL at 100" in str(high)


def test_metric_after_the_last_dot() -> None:
    (verdict,) = judge({"gguf@0.5.bytes": {"max": 7}}, metrics_of)
    assert verdict.passed is True
    for bad in ("bytes", ".bytes", "target."):
        with pytest.raises(ValueError, match=r"TARGET\.METRIC"):
            split_gate(bad)


def test_unknown_is_neither_pass_nor_fail() -> None:
    gates: dict[str, dict[str, object]] = {
        "report.gguf@Q4_K_M.kl_divergense": {"max": 1},
        "report.gguf@Q9.bytes": {"max": 1},
        "report.gguf@Q4_K_M.bytes": {"max": 1000, "bound": "upper"},
    }
    metric, target, interval = judge(gates, metrics_of)
    assert [verdict.passed for verdict in (metric, target, interval)] == [None, None, None]
    assert metric.nearest == ("kl_divergence",)
    assert "nearest: kl_divergence" in str(metric)
    assert "not been measured" in target.reason
    assert "(upper end of its interval)" in str(interval)
    assert passes([metric]) is None


def test_nan_and_non_numbers_do_not_pass() -> None:
    nan_max, nan_min = (judge({"report.gguf@Q4_K_M.broken": {side: 1}}, metrics_of)[0] for side in ("max", "min"))
    assert (nan_max.passed, nan_min.passed) == (False, False)
    (text,) = judge({"t.word": {"max": 1}}, lambda _: {"word": {"value": "1"}})
    assert text.passed is None
