"""A reliability diagram as a small SVG: for each range of confidence how often the model was right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from ingot.kit.confidence.reliability import Bin, Reliability

_SIDE, _GAP, _LEFT, _TOP = 220, 46, 54, 44
_INK, _FAINT, _BAR, _OVER = "#333333", "#d9d9d9", "#4878a8", "#d1603d"


def diagram(panels: Mapping[str, Reliability]) -> str:
    """One panel a title, side by side. Bars: accuracy; where confidence is higher the gap is filled, too."""
    width = _LEFT + len(panels) * _SIDE + (len(panels) - 1) * _GAP + 16
    height = _TOP + _SIDE + 52
    size = f'width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (title, found) in enumerate(panels.items()):
        parts += _Panel(_LEFT + number * (_SIDE + _GAP)).all(title, found, first=number == 0)
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Panel:
    """A unit square whose lower left corner is at ``left``; x and y are shares of it."""

    left: int

    def x(self, share: float) -> str:
        return f"{self.left + share * _SIDE:.1f}"

    def y(self, share: float) -> str:
        return f"{_TOP + (1 - share) * _SIDE:.1f}"

    def text(self, x: str, y: str, words: str, more: str = 'text-anchor="middle"') -> str:
        return f'<text x="{x}" y="{y}" {more} fill="{_INK}">{escape(words)}</text>'

    def line(self, ends: tuple[float, float, float, float], style: str) -> str:
        x1, y1, x2, y2 = ends
        return f'<line x1="{self.x(x1)}" y1="{self.y(y1)}" x2="{self.x(x2)}" y2="{self.y(y2)}" {style}/>'

    def bar(self, item: Bin, ends: tuple[float, float], style: str) -> str:
        """A rectangle over the bin's range, between two heights."""
        low, high = sorted(ends)
        wide = max(0.5, (item.high - item.low) * _SIDE - 1)
        size = f'width="{wide:.1f}" height="{(high - low) * _SIDE:.1f}"'
        return f'<rect x="{self.x(item.low)}" y="{self.y(high)}" {size} {style}/>'

    def all(self, title: str, found: Reliability, *, first: bool) -> list[str]:
        count = sum(item.n for item in found.bins)
        left, below = str(self.left), _TOP + _SIDE
        parts = [self.text(left, "20", title, 'font-size="13" font-weight="bold"')]
        parts += [self.text(left, "36", f"ECE {found.ece:.4f}, n = {count:,}", "")]
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            parts += [self.line((0, tick, 1, tick), f'stroke="{_FAINT}"')]
            parts += [self.text(self.x(tick), str(below + 16), f"{tick:g}")]
            if first:
                parts += [self.text(str(self.left - 6), self.y(tick - 0.02), f"{tick:g}", 'text-anchor="end"')]
        for item in found.bins:
            colour = _OVER if item.confidence > item.accuracy else _INK
            parts += [self.bar(item, (0, item.accuracy), f'fill="{_BAR}"')]
            parts += [self.bar(item, (item.accuracy, item.confidence), f'fill="{colour}" fill-opacity="0.35"')]
        parts += [self.line((0, 0, 1, 1), f'stroke="{_INK}" stroke-dasharray="4 3"')]
        parts += [self.text(self.x(0.5), str(below + 34), "confidence")]
        if first:
            turned = f'transform="translate({self.left - 36} {_TOP + _SIDE // 2}) rotate(-90)" text-anchor="middle"'
            parts += [self.text("0", "0", "accuracy", turned)]
        return parts
