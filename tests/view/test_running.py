"""A running target: rate and ETA from its messages, one line that always fits."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.view.running import Running, rows
from ingot.view.text import length, render


def progress(done: float, total: float | None = 40, unit: str = "steps", **live: object) -> dict[str, Any]:
    return {"t": "progress", "done": done, "total": total, "unit": unit, "live": live}


@pytest.fixture
def adapter() -> Running:
    item = Running("smollm2-pydoc:adapter", "adapter", started=100.0, reason="rank 16 → 8")
    item.hear({"t": "phase", "name": "training"}, 101.0)
    for second in range(11):
        item.hear(progress(second * 2, loss=3.0 - second / 10), 102.0 + second)
    return item


def test_rate_and_eta_come_from_the_messages(adapter: Running) -> None:
    assert adapter.rate(112.0) == pytest.approx(2.0)
    assert adapter.eta(112.0) == pytest.approx(10.0)
    assert adapter.eta(114.0) == pytest.approx(8.0), "the clock runs on between two messages"


def test_what_stands_still_has_no_end_in_sight(adapter: Running) -> None:
    """A search between two bursts of progress: the rate of the burst says nothing of it any more."""
    assert adapter.eta(121.0) is not None
    assert adapter.eta(123.0) is None
    assert adapter.rate(123.0) is None
    (line,) = rows([adapter], 140, 123.0, short=True)
    assert "eta" not in render(line, color=False)


def test_nothing_is_estimated_from_one_message() -> None:
    item = Running("s:a", "k", started=0.0)
    item.hear(progress(3), 1.0)
    assert item.rate(1.0) is None
    assert item.eta(1.0) is None


def test_a_new_phase_or_unit_forgets_the_old_rate(adapter: Running) -> None:
    adapter.hear(progress(1, 10, "documents"), 113.0)
    assert adapter.rate(113.0) is None
    adapter.hear({"t": "phase", "name": "scoring"}, 114.0)
    assert (adapter.count(), adapter.figures(), adapter.phase) == ("", [], "scoring")


def test_a_wide_line_says_everything(adapter: Running) -> None:
    (line,) = rows([adapter], 140, 112.0, short=True)
    assert render(line, color=False) == (
        "adapter  adapter     12 s  training  ━━━━━━━━━━━━────────────  20/40 steps  2 steps/s  eta 10 s  loss 2"
    )


def test_a_narrow_line_keeps_the_count_and_drops_rate_and_phase_first(adapter: Running) -> None:
    (line,) = rows([adapter], 70, 112.0, short=True)
    shown = render(line, color=False)
    assert "20/40 steps" in shown
    assert "eta 10 s" in shown
    assert "steps/s" not in shown


@pytest.mark.parametrize("width", range(10, 200, 3))
@pytest.mark.parametrize("short", [True, False])
def test_no_line_is_ever_wider_than_the_terminal(adapter: Running, width: int, short: bool) -> None:
    other = Running("smollm2-pydoc:report.gguf@Q4_K_M+a-very-long-value-of-a-matrix", "evaluate", started=0.0)
    other.hear(progress(1e9, 5e9, "B", tensor="model.layers.11.mlp.down_proj.weight"), 1.0)
    other.hear(progress(2e9, 5e9, "B", tensor="model.layers.12.mlp.down_proj.weight"), 2.0)
    for line in rows([adapter, other], width, 112.0, short=short):
        assert length(line) <= width


def test_of_several_live_figures_the_first_stays_longest(adapter: Running) -> None:
    adapter.hear(progress(22, loss=2.0, lr=0.0002, tokens_per_second=812.0), 113.0)
    (line,) = rows([adapter], 80, 113.0, short=True)
    shown = render(line, color=False)
    assert "loss 2" in shown
    assert "tokens_per_second" not in shown


def test_before_the_first_message_the_reason_is_shown() -> None:
    (line,) = rows([Running("s:a", "command", 0.0, reason="rank 16 → 8")], 80, 1.0, short=True)
    assert "rank 16 → 8" in render(line, color=False)
