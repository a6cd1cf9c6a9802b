"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from ingot.core.quantities import about_text, duration_text, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_400_000, "98.4 MB"), (2.5e9, "2.5 GB"), (3e12, "3.00 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.034, "0.03 s"), (12.44, "12.4 s"), (185, "3 min 05 s"), (59.96, "1 min 00 s"), (7800, "2 h 10 min")],
)
def test_measured_times(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.001, "0.1 s"),
        (0.44, "0.4 s"),
        (0.96, "1 s"),
        (12.4, "12 s"),
        (59.6, "1 min"),
        (185, "3 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_predicted_times_are_no_finer_than_a_prediction(seconds: float, text: str) -> None:
    assert about_text(seconds) == text
