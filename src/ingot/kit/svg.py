"""Small pictures as SVG, of our own: the same bytes for the same numbers, light or dark as the page around them is.

A plotting library would be in the key of whatever draws, and its next version would train all models again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

#: Classes of every picture: the colour of each on light and on dark paper, and what it colours.
_COLOURS: Mapping[str, tuple[str, str, str]] = {
    "paper": ("fill", "#ffffff", "#0d1117"),
    "ink": ("fill", "#1f2328", "#f0f6fc"),
    "soft": ("fill", "#59636e", "#9198a1"),
    "grid": ("stroke", "#d8dee4", "#2b3138"),
    "axis": ("stroke", "#59636e", "#9198a1"),
}
_FONT = """\
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
  .title { font-size: 16px; font-weight: 600 }"""


def picture(
    size: tuple[int, int],
    title: str,
    colours: Mapping[str, tuple[str, str, str]],
    parts: Iterable[str],
    rules: str = "",
) -> str:
    """The whole file. ``colours``: further classes (what is coloured, on light paper, on dark); ``rules``: more CSS."""
    width, height = size
    place = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    known = {**_COLOURS, **colours}
    light, dark = (
        " ".join(f".{name} {{ {found[0]}: {found[which]} }}" for name, found in known.items()) for which in (1, 2)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {place} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n  {light}\n  @media (prefers-color-scheme: dark) {{ {dark} }}\n{_FONT}{rules}\n</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def text(x: float, y: float, words: str, name: str, anchor: str = "start") -> str:
    """Words whose line begins, ends or has its middle at a point."""
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def turned(x: float, y: float, words: str, name: str) -> str:
    """Words from below to above, with their middle at a point."""
    place = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"'
    return f'<text class="{name}" text-anchor="middle" {place}>{escape(words)}</text>'


def line(ends: tuple[float, float, float, float], name: str, width: float | None = None) -> str:
    """A straight line from (x, y) to (x, y)."""
    x1, y1, x2, y2 = ends
    wide = "" if width is None else f' stroke-width="{width}"'
    return f'<line class="{name}"{wide} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def bar(corner: tuple[float, float], size: tuple[float, float], name: str) -> str:
    """A rectangle from its upper left corner."""
    place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect class="{name}" {place}/>'
