"""The line of a target that ended and the block of one that failed."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.view.lines import failure_block, result_line
from ingot.view.text import length, render

RECEIPT: dict[str, Any] = {
    "timings": {"wall_s": 133.4, "peak_anon_bytes": 3_021_000_000},
    "files": [{"path": "a", "size": 12_000_000}, {"path": "b", "size": 345_678}],
    "metrics": {
        "eval_loss_before": {"value": 3.1, "unit": "nats/token"},
        "eval_loss_after": {"value": 2.41, "unit": "x"},
    },
}


def test_a_built_target_in_one_line() -> None:
    line = result_line("built", "pydoc:adapter", RECEIPT, (14, 140), "rank 16 → 8")
    assert render(line, color=False) == (
        "built     pydoc:adapter    2m 13s  12.3 MB  eval_loss 3.10 → 2.41  peak 3.02 GB  because rank 16 → 8"
    )


def test_the_peak_is_what_a_person_sees_of_the_process() -> None:
    timings = RECEIPT["timings"] | {"peak_rss_bytes": 4_500_000_000}
    line = result_line("built", "p:a", RECEIPT | {"timings": timings}, (3, 140))
    assert render(line, color=False).endswith("peak 4.50 GB")


def test_what_goes_without_saying_is_not_said() -> None:
    assert "because" not in render(result_line("built", "p:a", RECEIPT, (3, 140), "never built"), color=False)


def test_a_restored_target_has_no_time_and_no_memory() -> None:
    shown = render(
        result_line("restored", "p:a", RECEIPT, (3, 140), "found again, built 2026-01-02 10:00"), color=False
    )
    assert "2m 13s" not in shown
    assert "peak" not in shown
    assert shown.endswith("found again, built 2026-01-02 10:00")


@pytest.mark.parametrize("width", range(30, 140, 5))
def test_it_fits_and_drops_the_reason_before_the_facts(width: int) -> None:
    line = result_line("built", "pydoc:adapter", RECEIPT, (14, width), "learning_rate 0.0002 → 0.0001 and more words")
    shown = render(line, color=False)
    assert length(line) <= width
    assert "because" not in shown or "eval_loss" in shown


def test_a_failure_keeps_every_word() -> None:
    error = "E-SPACE: the disk is full\n  needs 3 GB in " + "x" * 300 + "\n  hint: doit gc"
    shown = [render(line, color=False) for line in failure_block("p:a", error)]
    assert shown[0] == "failed    p:a  E-SPACE: the disk is full"
    assert shown[1] == "          needs 3 GB in " + "x" * 300
    assert shown[2] == "          hint: doit gc"
