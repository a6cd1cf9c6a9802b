"""What a person reads: aligned text, with colour and wrapping only where a terminal is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ingot.core import quantities

if TYPE_CHECKING:
    from rich.console import Console

number_text = quantities.number_text
size_text = quantities.size_text
duration_text = quantities.duration_text

_GAP = "  "
#: Columns in which wrapped text can still be read.
_LAST_MIN = 24
#: The colour of a word that says a target's fate.
_COLOURS = {
    "fresh": "green", "ok": "green", "pass": "green", "stale": "yellow", "waiting": "cyan", "building": "blue",
    "restored": "cyan", "note": "cyan", "missing": "red", "fail": "red", "damaged": "red", "gate-failed": "red",
    "warn": "yellow", "gate-warned": "yellow",
}  # fmt: skip


class Screen:
    """Standard output of a command: a terminal, or a pipe that gets plain unwrapped lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            # A terminal that knows no Unicode must not turn a listing into a traceback.
            stream.reconfigure(errors="replace")
        self.is_terminal = stream.isatty()
        self.width = shutil.get_terminal_size((100, 24)).columns if self.is_terminal else None

    def line(self, text: str = "") -> None:
        """One line of text."""
        self._stream.write(text + "\n")

    def piece(self, text: str) -> None:
        """A part of a line, seen at once."""
        self._stream.write(text)
        self._stream.flush()

    def text(self, text: str) -> None:
        """Lines of text, wrapped on a terminal between words; what goes on is indented."""
        import textwrap

        for line in text.splitlines():
            room, indent = self.width or sys.maxsize, " " * (len(line) - len(line.lstrip()) + 2)
            wrapped = textwrap.wrap(
                line, max(room, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
            for part in wrapped:
                self.line(part)

    def json(self, value: object) -> None:
        """A JSON document."""
        from ingot.commands.base import json_text

        self._stream.write(json_text(value, self._stream.encoding))

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        """Rows under titles; columns listed in ``right`` are aligned right. The last column wraps on a terminal.

        Where a terminal leaves it no room, it goes below its row. No other cell is ever cut.
        """
        if self.width is not None:
            longest = max((len(row[-1]) for row in rows), default=0)
            room = self.width - sum(width + len(_GAP) for width in _widths([titles, *rows])[:-1])
            draw = self._rich_table if room >= min(longest, _LAST_MIN) else self._stacked
            draw(titles, rows, right)
            return
        for text in aligned([tuple(titles), *rows] if any(titles) else rows, right):
            self.line(text)

    def _rich_table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(titles), header_style="bold")
        for index, title in enumerate(titles):
            options: dict[str, Any] = {"justify": "right"} if index in right else {}
            if index < len(titles) - 1:
                options["no_wrap"] = True
            table.add_column(title, overflow="fold", **options)
        for row in rows:
            table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
        self._console().print(table)

    def _stacked(self, titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
        """Each row's last cell below the others of the row."""
        import textwrap

        from rich.text import Text

        console = self._console()
        widths = _widths([titles, *rows])[:-1]
        for style, row in [("bold", titles)] * any(titles) + [("", row) for row in rows]:
            line = Text()
            for index, (cell, width) in enumerate(zip(row[:-1], widths, strict=True)):
                padded = cell.rjust(width) if index in right else cell.ljust(width)
                line.append((_GAP if index else "") + padded, style=style or _COLOURS.get(cell, ""))
            line.rstrip()
            console.print(line, soft_wrap=True)
            for text in textwrap.wrap(row[-1] if row is not titles else "", max((self.width or 80) - 4, 20)):
                console.print(Text(f"    {text}"), soft_wrap=True)

    def _console(self) -> Console:
        from rich.console import Console

        return Console(file=self._stream, highlight=False, no_color="NO_COLOR" in os.environ or None)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines with aligned columns; the last column is never padded."""
    if not rows:
        return []
    widths = _widths(rows)
    return [
        _GAP.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]


def measured_text(value: float | None, predicted: float | None, text: Callable[[float], str]) -> str:
    """What was measured, and what had been predicted of it: ``12.4 s (predicted 14.0 s)``."""
    if predicted is None:
        return "" if value is None else text(value)
    return f"{'not measured' if value is None else text(value)} (predicted {text(predicted)})"


def plural(count: int, noun: str) -> str:
    """``1 target``, ``14 targets``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def when_text(time: str) -> str:
    """An RFC 3339 time as a short date and time in UTC."""
    return f"{time[:16].replace('T', ' ')} UTC"
