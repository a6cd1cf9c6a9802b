"""Whole lines for logs: few, and none lost with a reader that went away."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from ingot.view.board import Board
from ingot.view.plain import PlainScreen, is_terminal, progress_line


def test_progress_is_said_while_there_is_news_and_stops_with_the_screen() -> None:
    board, stream = Board(), io.StringIO()
    screen = PlainScreen(stream, board, news_s=0.05)
    screen.begin(board.begin("s:a", "adapter", "never built"))
    board.hear("s:a", {"t": "progress", "done": 12, "total": 40, "unit": "steps", "live": {"loss": 2.5}})
    deadline = time.monotonic() + 10
    while "12/40" not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    screen.close()
    time.sleep(0.1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "start     s:a  adapter  never built"
    assert lines[1] == "          s:a  12/40 steps (30 %)  loss 2.50  0 s so far"
    assert len(lines) == 2, "without news nothing is said again"


def test_a_long_reason_is_cut() -> None:
    board, stream = Board(), io.StringIO()
    screen = PlainScreen(stream, board)
    screen.begin(board.begin("s:a", "command", "x" * 500))
    screen.close()
    assert len(stream.getvalue()) < 200


def test_a_phase_without_progress_has_a_line_too() -> None:
    item = Board().begin("s:a", "convert", "")
    item.hear({"t": "phase", "name": "loading"}, item.started)
    assert progress_line(item, item.started + 75) == "          s:a  loading  1m 15s so far"


def test_a_closed_pipe_does_not_end_the_build(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        os.close(reading)
        screen = PlainScreen(stream, Board())
        screen.say([[("one", "")]])
        screen.say([[("two", "")]])
        screen.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "live"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "CI": "true"}, False)],
)
def test_where_a_live_display_is_welcome(environ: dict[str, str], live: bool) -> None:
    assert is_terminal(Terminal(), environ) is live
    assert not is_terminal(io.StringIO(), environ)
