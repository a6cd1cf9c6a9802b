"""The screen for pipes, CI and dumb terminals: a line at the start and the end of each target, few in between."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Protocol, TextIO

from ingot.view.board import Board
from ingot.view.running import Running
from ingot.view.text import Line, clock, cut, printable, rate, render

#: Between two progress lines of one target, and between two when nothing is heard of it.
_NEWS_S, _SILENCE_S = 10.0, 60.0
#: A changed parameter may be a whole program.
_REASON_MAX = 160
_INDENT = " " * 10


class Screen(Protocol):
    """Where a run is shown."""

    @property
    def width(self) -> int:
        """Cells a line may take."""

    def begin(self, item: Running) -> None:
        """A target starts to run."""

    def say(self, lines: Iterable[Line]) -> None:
        """Lines that stay."""

    def close(self) -> None:
        """Show nothing more by itself; idempotent."""


class PlainScreen:
    """Whole lines of plain text, each flushed; never a control character."""

    #: A log has no edge: lines are not cut.
    width = 10_000

    def __init__(self, stream: TextIO, board: Board, *, news_s: float = _NEWS_S) -> None:
        self._stream = stream
        self._board = board
        self._news_s = news_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker: threading.Thread | None = None

    def begin(self, item: Running) -> None:
        """Say what starts and why; from now on say every few seconds how far it is."""
        reason = cut([(f"  {printable(item.reason)}", "")], _REASON_MAX) if item.reason else []
        self.say([[(f"start     {item.name}  {item.kind}", ""), *reason]])
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="ingot-progress", daemon=True)
            self._ticker.start()

    def say(self, lines: Iterable[Line]) -> None:
        """Write lines; a reader that went away does not stop the build."""
        with self._lock:
            try:
                for line in lines:
                    self._stream.write(render(line, color=False) + "\n")
                self._stream.flush()
            except BrokenPipeError:
                _silence(self._stream)

    def close(self) -> None:
        """End the progress lines."""
        self._closed.set()

    def _tick(self) -> None:
        said: dict[str, tuple[float, int]] = {}
        while not self._closed.wait(min(self._news_s / 10, 1.0)):
            now = time.monotonic()
            for item in self._board.running():
                when, heard = said.setdefault(item.name, (item.started, 0))
                # Why nothing happens is said at once.
                patience = self._news_s if item.heard > heard else max(_SILENCE_S, self._news_s)
                if now - when >= patience or (item.waiting and item.heard > heard):
                    said[item.name] = (now, item.heard)
                    self.say([[(progress_line(item, now), "")]])


def progress_line(item: Running, now: float) -> str:
    """How far a target is, as one plain line: ``          pydoc:adapter  train  12/40 steps (30 %)  loss 2.31  …``."""
    speed, eta = item.rate(now), item.eta(now)
    share = f" ({100 * item.done / item.total:.0f} %)" if item.total else ""
    parts = [
        item.name,
        item.phase or ("" if item.unit else "running"),
        f"{item.count()}{share}" if item.unit else "",
        *item.figures(),
        rate(speed, item.unit) if speed is not None else "",
        f"eta {clock(eta)}" if eta is not None else "",
        f"{clock(now - item.started)} so far",
    ]
    return _INDENT + "  ".join(part for part in parts if part)


def _silence(stream: TextIO) -> None:
    """Send what is still written to a closed pipe nowhere, so that no traceback follows at exit either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a live display is welcome: a terminal that can move its cursor, outside CI."""
    if environ.get("CI") or environ.get("TERM", "") in {"", "dumb"}:
        return False
    return stream.isatty()
