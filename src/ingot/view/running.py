"""A running target as it is known from its messages, and its one line on the screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.view.text import Line, Piece, amount, cells, clock, cut, figure, join, length, printable, rate, size

#: Seconds over which a rate is measured.
_WINDOW_S = 15.0
#: For so long at least a rate holds although nothing is heard.
_STILL_S = 5.0
_NAME_MAX = 34
_BAR = (8, 24)


@dataclass
class Running:
    """What is known of one running target; ``hear`` takes the messages of its stage."""

    name: str
    kind: str
    started: float
    reason: str = ""
    phase: str = ""
    #: Whether it waits for another process.
    waiting: bool = False
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    live: Mapping[str, Any] = field(default_factory=dict)
    #: Messages heard so far: a screen that prints only news compares it.
    heard: int = 0
    _samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=400))

    def hear(self, message: Mapping[str, Any], now: float) -> None:
        """Take one ``progress``, ``phase`` or ``waiting`` message."""
        self.heard += 1
        self.waiting = message["t"] == "waiting"
        if message["t"] == "progress":
            self._progress(message, now)
            return
        self.phase = printable(str(message["name"]))
        self.done, self.total, self.unit, self.live = 0.0, None, "", {}
        self._samples.clear()

    def _progress(self, message: Mapping[str, Any], now: float) -> None:
        done, total, unit = float(message["done"]), message["total"], printable(str(message["unit"]))
        if unit != self.unit or done < self.done or total != self.total:
            self._samples.clear()
        self.done, self.total, self.unit, self.live = done, total, unit, message.get("live") or {}
        self._samples.append((now, done))
        while self._samples[0][0] < now - _WINDOW_S:
            self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Units per second over the last seconds; None until it can be told, and of what has stood still for longer."""
        if len(self._samples) < 2:
            return None
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        if now - last > max(last - first, _STILL_S):
            return None
        return (after - before) / (last - first) if last - first >= 0.2 and after > before else None

    def eta(self, now: float) -> float | None:
        """Seconds to the end of this phase at the present rate; None when nothing tells it."""
        speed = self.rate(now)
        if speed is None or self.total is None or self.done >= self.total:
            return None
        return max((self.total - self.done) / speed - (now - self._samples[-1][0]), 0.0)

    def count(self) -> str:
        """``12/40 steps``, ``12.3 MB of 105 MB``, ``310 rows``; empty before the first progress."""
        if not self.unit:
            return ""
        if self.total is None:
            return amount(self.done, self.unit)
        if self.unit == "B":
            return f"{size(self.done)} of {size(self.total)}"
        return f"{amount(self.done, '1')}/{amount(self.total, self.unit)}"

    def figures(self) -> list[str]:
        """The live figures, as the stage named them."""
        return [printable(figure(name, value)) for name, value in self.live.items()]


def rows(running: Sequence[Running], width: int, now: float, *, short: bool) -> list[Line]:
    """One line a running target, in columns, each at most ``width`` cells. ``short`` leaves out the spec's name."""
    names = [printable(item.name.partition(":")[2] if short else item.name) for item in running]
    name_width = min(max(map(cells, names), default=0), _NAME_MAX, width // 2)
    kind_width = max((cells(item.kind) for item in running), default=0) if width >= 100 else 0
    return [_row(item, name, (name_width, kind_width, width), now) for item, name in zip(running, names, strict=True)]


def _row(item: Running, name: str, widths: tuple[int, int, int], now: float) -> Line:
    name_width, kind_width, width = widths
    head: list[Piece] = [*_pad(cut([(name, "bold")], name_width), name_width)]
    if kind_width:
        head += [("  ", ""), *_pad([(item.kind, "dim")], kind_width)]
    head += [("  ", ""), (clock(now - item.started).rjust(7), "dim")]
    return cut([*head, ("  ", ""), *_body(item, width - length(head) - 2, now)], width)


def _body(item: Running, room: int, now: float) -> Line:
    """Phase, bar, count, rate, ETA and live figures: what matters least goes first when space is short."""
    eta, speed, figures = item.eta(now), item.rate(now), item.figures()
    working = speed is not None and (item.total is None or item.done < item.total)
    parts = {
        "phase": (item.phase or ("" if item.unit else _starting(item)), "cyan"),
        "count": (item.count(), ""),
        "rate": (rate(speed, item.unit) if working and speed is not None else "", "dim"),
        "eta": ("" if eta is None else f"eta {clock(max(eta, 1))}", ""),
        **{f"live{index}": (text, "yellow") for index, text in enumerate(figures)},
    }
    least = ["rate", *(f"live{index}" for index in range(len(figures) - 1, 0, -1)), "phase", "live0", "eta"]
    bar = _BAR[0] if item.total and item.unit else 0
    while least and _needed(parts.values(), bar) > room and len(parts) > 1:
        parts.pop(least.pop(0), None)
    bar = min(_BAR[1], bar + max(room - _needed(parts.values(), bar), 0)) if bar else 0
    lines: list[Line] = [[part] for name, part in parts.items() if name != "phase"]
    return cut(join([[parts.get("phase", ("", ""))], _bar(item, bar), *lines]), room)


def _starting(item: Running) -> str:
    return f"starting: {item.reason}" if item.reason not in {"", "never built"} else "starting"


def _needed(parts: Iterable[Piece], bar: int) -> int:
    shown = [cells(text) for text, _ in parts if text] + ([bar] if bar else [])
    return sum(shown) + 2 * max(len(shown) - 1, 0)


def _bar(item: Running, width: int) -> Line:
    if not width or not item.total:
        return []
    filled = round(width * min(max(item.done / item.total, 0.0), 1.0))
    return [("━" * filled, "green"), ("─" * (width - filled), "dim")]


def _pad(line: Line, width: int) -> Line:
    return [*line, (" " * (width - length(line)), "")]
