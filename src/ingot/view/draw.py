"""Tables on a terminal, drawn by rich: the cells come ready from the core."""

from __future__ import annotations

from typing import TextIO

from ingot.core.table import Table
from ingot.view.live import console


def draw(stream: TextIO, table: Table) -> None:
    """Print a table with a rule under its head; cells that do not fit are folded, never cut."""
    from rich import box
    from rich.table import Table as RichTable

    # One cell of padding and one of divider: the gap of two that Table.width() counts.
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in table.columns:
        grid.add_column(column.title, justify=column.align, overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console(stream).print(grid)
