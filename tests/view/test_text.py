"""How durations, sizes and metrics are written; lines are cut by cells."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.view import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.214, "0.21 s"), (4.24, "4.2 s"), (9.96, "10 s"), (59.7, "1m 00s"), (133, "2m 13s"), (3725, "1h 02m")],
)
def test_durations_never_read_zero_minutes(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (104_857_600, "105 MB"),
        (3_021_000_000, "3.02 GB"),
        (999_999, "1.00 MB"),
    ],
)
def test_sizes_are_in_powers_of_ten(count: int, shown: str) -> None:
    assert text.size(count) == shown


def test_live_figures_keep_small_numbers_apart_from_zero() -> None:
    assert text.figure("lr", 0.0002) == "lr 2.0e-04"
    assert text.figure("loss", 2.4123) == "loss 2.41"
    assert text.figure("tensor", "blk.0") == "tensor blk.0"


def metric(value: float, unit: str = "1") -> dict[str, Any]:
    return {"value": value, "unit": unit, "method": "measured"}


def test_the_headline_joins_before_and_after() -> None:
    metrics = {
        "eval_loss_before": metric(3.102, "nats/token"),
        "eval_loss_after": metric(2.412, "nats/token"),
        "parameters": metric(134_515_008, "parameters"),
        "steps": metric(40),
    }
    assert text.headline(metrics) == ["eval_loss 3.10 → 2.41", "135 M parameters"]


def test_the_headline_begins_with_what_was_asked_for() -> None:
    """Answers and preferences are what a run is about; losses come after them."""
    loss = {"eval_loss_before": metric(0.693, "nats/pair"), "eval_loss_after": metric(0.46, "nats/pair")}
    assert text.headline({**loss, "preference_accuracy": metric(0.9)})[0] == "preference_accuracy 0.90"
    assert text.headline({"perplexity": metric(1.23), "pattern_accuracy": metric(1.0)})[0] == "pattern_accuracy 1"


def test_the_headline_of_an_unknown_kind_is_empty() -> None:
    assert text.headline({"anything": metric(1)}) == []


@given(st.lists(st.tuples(st.text(max_size=30), st.sampled_from(sorted(text.STYLES)))), st.integers(1, 60))
def test_a_cut_line_fits_and_one_that_fits_is_left_alone(line: list[tuple[str, str]], width: int) -> None:
    cut = text.cut(line, width)
    assert text.length(cut) <= width
    if text.length(line) <= width:
        assert cut == line


def test_wide_characters_count_two() -> None:
    assert text.cut([("漢字漢字", "")], 5) == [("漢字", ""), ("…", "")]


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert "\x1b" not in text.printable("a\x1b[2Jb\r")


def test_no_color_forbids_colours() -> None:
    assert not text.wants_color({"NO_COLOR": "1"})
    assert text.wants_color({"NO_COLOR": ""})
    assert text.render([("a", "green"), ("b ", "")], color=False) == "ab"
    assert text.render([("a", "green")], color=True) == "\x1b[32ma\x1b[0m"
