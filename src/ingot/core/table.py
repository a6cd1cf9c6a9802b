"""A table of plain text cells, which a screen, a logger and Markdown draw each in its own way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

_GAP = 2


@dataclass(frozen=True)
class Column:
    """One column: ``priority`` 0 is never dropped; the highest number goes first when space is short."""

    key: str
    title: str
    align: Literal["left", "right"]
    priority: int


@dataclass(frozen=True)
class Table:
    """Plain text cells, row by row, in the order of the spec; ``notes`` explain the dashes."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def width(self) -> int:
        """Characters that the table needs: the widest cell of each column and a gap between columns."""
        return sum(self._widths()) + _GAP * (len(self.columns) - 1)

    def lines(self) -> list[str]:
        """The table as aligned plain text lines, the header first (a logger, a pipe, ``NO_COLOR``)."""
        widths = self._widths()
        texts = [tuple(column.title for column in self.columns), *self.rows]
        return [
            (" " * _GAP)
            .join(
                cell.ljust(width) if column.align == "left" else cell.rjust(width)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            )
            .rstrip()
            for row in texts
        ]

    def without(self, key: str) -> Table:
        """The same table without one column."""
        kept = [index for index, column in enumerate(self.columns) if column.key != key]
        return replace(
            self,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(tuple(row[index] for index in kept) for row in self.rows),
        )

    def _widths(self) -> list[int]:
        return [
            max(len(column.title), *(len(row[index]) for row in self.rows), 0)
            for index, column in enumerate(self.columns)
        ]
