"""The live screen of a terminal: permanent lines scroll up, the running targets stay below. rich draws it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TextIO

from ingot.view.board import Board
from ingot.view.running import Running, rows
from ingot.view.text import Line, cut, render, wants_color

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

_REFRESH_PER_SECOND = 8


class LiveScreen:
    """Writes plain coloured lines until the first target runs; rich is imported then and not before."""

    def __init__(self, stream: TextIO, board: Board) -> None:
        self._stream = stream
        self._board = board
        self._color = wants_color()
        self._live: Live | None = None
        self._lock = threading.RLock()

    @property
    def width(self) -> int:
        """The columns of the terminal as it is now."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return columns or 80

    def begin(self, item: Running) -> None:  # noqa: ARG002 - the board has the target; a screen of lines needs it
        """Start the display with the first target that runs."""
        with self._lock:
            if self._live is None:
                self._live = _start(self._stream, self)

    def say(self, lines: Iterable[Line]) -> None:
        """Print lines above the running ones; each is cut by whoever made it, or may wrap."""
        with self._lock:
            if self._live is not None:
                for line in lines:
                    self._live.console.print(_text(line), soft_wrap=True)
                return
            self._stream.write("".join(render(line, color=self._color) + "\n" for line in lines))
            self._stream.flush()

    def close(self) -> None:
        """Remove the running lines and give the cursor back."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._stream.flush()

    def frame(self) -> list[Line]:
        """The lines below the permanent ones: the running targets, then the count."""
        now, width = time.monotonic(), self.width
        running = self._board.running()
        room = max(_height(self._stream) - 2, 1)
        shown = [cut(line, width) for line in rows(running[:room], width, now, short=self._board.short)]
        return [*shown, cut(self._board.summary(now), width)]


def _height(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (OSError, ValueError):
        return 24


def console(stream: TextIO) -> Console:
    """A rich console on a terminal that adds nothing of its own; ``NO_COLOR`` leaves no style at all."""
    from rich.console import Console

    color: Literal["auto"] | None = "auto" if wants_color() else None
    return Console(file=stream, force_terminal=True, color_system=color, highlight=False, markup=False, emoji=False)


def _text(line: Line) -> Text:
    from rich.text import Text

    return Text.assemble(*line, no_wrap=True, overflow="crop")


def _start(stream: TextIO, screen: LiveScreen) -> Live:
    from rich.console import Group
    from rich.live import Live

    live = Live(
        console=console(stream),
        get_renderable=lambda: Group(*map(_text, screen.frame())),
        refresh_per_second=_REFRESH_PER_SECOND,
        transient=True,
    )
    live.start()
    return live
