"""The permanent line of a target that ended, and the block of one that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.view.text import Line, Piece, cells, cut, duration, headline, join, length, printable, size

_STYLES = {"built": "green", "restored": "cyan", "failed": "red", "skipped": "yellow", "ran": "green", "fresh": "dim"}
_STYLES |= {"streamed": "green", "virtual": "dim"}
_FATE_WIDTH = 8
#: The detail that goes without saying on a first build.
_EXPECTED = "never built"
_REASON_MIN = 24


def result_line(fate: str, name: str, receipt: Mapping[str, Any], layout: tuple[int, int], reason: str = "") -> Line:
    """``built     pydoc:adapter  2m 13s   12.3 MB  eval_loss 3.10 → 2.41  peak 3.02 GB  because …``.

    ``layout`` is (cells for names, cells of a line). What does not fit is left out, the reason first, then the
    memory, then the measured facts. A restored target has no time: it was not built now. Nor has one that was
    streamed: its time is that of what it flowed into.
    """
    name_width, width = layout
    timings = receipt["timings"]
    # What a person sees in ``top``; anonymous memory alone where nothing else was measured.
    peak = (timings.get("peak_rss_bytes") or timings.get("peak_anon_bytes")) if fate == "built" else None
    total = sum(int(file["size"]) for file in receipt["files"])
    wall = duration(timings["wall_s"]) if fate == "built" else ""
    head: list[Piece] = [
        *title(fate, name, name_width),
        (f"  {wall:>7}  {size(total):>7}", ""),
    ]
    because = "" if reason in {"", _EXPECTED} else reason if fate in ("restored", "streamed") else f"because {reason}"
    facts: list[Line] = [[(fact, "bold")] for fact in map(printable, headline(receipt["metrics"]))]
    tail: list[Line] = [
        *facts,
        *([[(f"peak {size(peak)}", "dim")]] if peak else []),
        *([[(printable(because), "dim")]] if because else []),
    ]
    return _fit(head, tail, width, cuttable=bool(because))


def _fit(head: Line, tail: list[Line], width: int, *, cuttable: bool) -> Line:
    """As much of the tail as there is room for; a ``cuttable`` last part is shortened while it still says something."""
    while tail and length(join([head, *tail])) > width:
        last = tail.pop()
        room = width - length(join([head, *tail])) - 2
        if cuttable and room >= _REASON_MIN:
            tail.append(cut(last, room))
        cuttable = False
    return cut(join([head, *tail]), width)


def title(fate: str, name: str, name_width: int = 0) -> Line:
    """The word for a target's fate and its name, in columns."""
    pad = " " * max(name_width - cells(name), 0)
    return [(f"{fate:<{_FATE_WIDTH}}", _STYLES[fate]), (f"  {name}{pad}", "bold")]


def failure_block(name: str, text: str) -> list[Line]:
    """A failure: the target, then what an error says of itself, line by line; nothing is cut."""
    first, *rest = [printable(line.rstrip()) for line in text.strip().splitlines()] or ["it gave no reason"]
    lines: list[Line] = [[*title("failed", name), (f"  {first}", "red")]]
    for line in rest:
        style = "yellow" if line.strip().startswith("hint:") else ""
        lines.append([(" " * _FATE_WIDTH + line if line.startswith(" ") else " " * (_FATE_WIDTH + 2) + line, style)])
    return lines
