"""A reliability diagram as a small SVG: for each range of confidence how often the model was right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ingot.kit import svg
from ingot.kit.confidence.reliability import Bin, Reliability

_SIDE, _GAP, _LEFT, _TOP = 220, 46, 54, 44
_COLOURS = {
    "bar": ("fill", "#4878a8", "#58a6ff"),
    "over": ("fill", "#d1603d", "#ffa657"),
    "under": ("fill", "#59636e", "#9198a1"),
    "equal": ("stroke", "#59636e", "#9198a1"),
}
_RULES = """
  .over, .under { fill-opacity: .35 } .equal { stroke-dasharray: 4 3 }"""


def diagram(panels: Mapping[str, Reliability]) -> str:
    """One panel a title, side by side. Bars: accuracy; between it and the confidence the gap is filled."""
    size = (_LEFT + len(panels) * _SIDE + (len(panels) - 1) * _GAP + 16, _TOP + _SIDE + 52)
    parts = [
        part
        for number, (title, found) in enumerate(panels.items())
        for part in _Panel(_LEFT + number * (_SIDE + _GAP)).all(title, found, first=number == 0)
    ]
    told = ", ".join(f"{title}: ECE {found.ece:.4f}" for title, found in panels.items())
    return svg.picture(size, told, _COLOURS, parts, _RULES)


@dataclass(frozen=True)
class _Panel:
    """A unit square whose lower left corner is at ``left``; x and y are shares of it."""

    left: int

    def x(self, share: float) -> float:
        return self.left + share * _SIDE

    def y(self, share: float) -> float:
        return _TOP + (1 - share) * _SIDE

    def all(self, title: str, found: Reliability, *, first: bool) -> Iterator[str]:
        count, below = sum(item.n for item in found.bins), _TOP + _SIDE
        yield svg.text(self.left, 20, title, "ink title")
        yield svg.text(self.left, 36, f"ECE {found.ece:.4f}, n = {count:,}", "soft")
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            yield svg.line((self.x(0), self.y(tick), self.x(1), self.y(tick)), "grid")
            yield svg.text(self.x(tick), below + 16, f"{tick:g}", "soft", "middle")
            if first:
                yield svg.text(self.left - 6, self.y(tick - 0.02), f"{tick:g}", "soft", "end")
        for item in found.bins:
            yield self._bar(item, (0, item.accuracy), "bar")
            gap = "over" if item.confidence > item.accuracy else "under"
            yield self._bar(item, (item.accuracy, item.confidence), gap)
        yield svg.line((self.x(0), self.y(0), self.x(1), self.y(1)), "equal")
        yield svg.text(self.x(0.5), below + 34, "confidence", "soft", "middle")
        if first:
            yield svg.turned(self.left - 36, _TOP + _SIDE / 2, "accuracy", "soft")

    def _bar(self, item: Bin, ends: tuple[float, float], name: str) -> str:
        """A rectangle over the bin's range, between two heights."""
        low, high = sorted(ends)
        wide = max(0.5, (item.high - item.low) * _SIDE - 1)
        return svg.bar((self.x(item.low), self.y(high)), (wide, (high - low) * _SIDE), name)
