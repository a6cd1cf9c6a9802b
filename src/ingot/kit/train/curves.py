"""The loss of a training as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ingot.kit import svg

Point = tuple[float, float]

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 64, 56
#: A line has at most so many points; more are averaged.
_MOST = 600
#: Weight of what came before in the smoothed line, and steps from which on there is one.
_SMOOTH, _SMOOTH_FROM = 0.9, 10
_COLOURS = {
    "raw": ("stroke", "#0969da", "#58a6ff"),
    "smooth": ("stroke", "#0969da", "#58a6ff"),
    "held": ("stroke", "#bc4c00", "#ffa657"),
    "dot": ("fill", "#bc4c00", "#ffa657"),
    "kept": ("stroke", "#59636e", "#9198a1"),
}
_RULES = """
  .line { fill: none; stroke-linejoin: round } .raw { opacity: .35 } .kept { stroke-dasharray: 4 4 }"""


@dataclass(frozen=True)
class Curves:
    """Loss by step: of each batch, and of the held-out items; ``kept`` is the step whose weights are the result."""

    train: Sequence[Point]
    held: Sequence[Point]
    unit: str
    kept: int | None = None


@dataclass(frozen=True)
class _Scale:
    """Maps values to the place of the plot; ``ticks`` are round numbers within its bounds."""

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def picture(curves: Curves) -> str:
    """The picture."""
    steps = max((step for step, _ in [*curves.train, *curves.held]), default=1.0)
    values = [value for _, value in [*curves.train, *curves.held] if math.isfinite(value)] or [0.0, 1.0]
    across = _scale(0.0, max(steps, 1.0), _LEFT, _WIDTH - _RIGHT, whole=True)
    up = _scale(min(values), max(values), _HEIGHT - _BOTTOM, _TOP, whole=False)
    parts = [
        svg.text(_LEFT, 26, "Loss", "ink title"),
        svg.text(_LEFT, 46, _title(curves), "soft"),
        *_axes(across, up, curves.unit),
        *_lines(curves, across, up),
        *_legend(curves),
    ]
    return svg.picture((_WIDTH, _HEIGHT), _title(curves), _COLOURS, parts, _RULES)


def _title(curves: Curves) -> str:
    parts = [f"{len(curves.train)} steps"]
    if curves.train:
        parts.append(f"training {curves.train[0][1]:.3g} → {curves.train[-1][1]:.3g} {curves.unit}")
    if curves.held:
        kept = dict(curves.held).get(float(curves.kept or 0), curves.held[-1][1])
        parts.append(f"held out {curves.held[0][1]:.3g} → {kept:.3g}")
    return ", ".join(parts)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The exponentially weighted mean of each value and those before it, without the pull of its start to zero."""
    found, mean, weight = [], 0.0, 0.0
    for step, value in points:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        found.append((step, mean / weight))
    return found


def thinned(points: Sequence[Point], most: int = _MOST) -> list[Point]:
    """At most so many points: the means of runs of equal length, the last of which may be shorter."""
    size = max(1, math.ceil(len(points) / most))
    runs = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(step for step, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs]


def _scale(low: float, high: float, start: float, stop: float, *, whole: bool) -> _Scale:
    """A scale over [low, high] with four to eight round ticks, widened to them where values are not whole steps."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / 6)
    if whole:
        step = max(step, 1.0)
        ticks = [index * step for index in range(math.floor(high / step) + 1)]
        return _Scale(low, high, tuple(ticks), start, stop)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [index * step for index in range(first, last + 1)]
    return _Scale(ticks[0], ticks[-1], tuple(ticks), start, stop)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))


def _axes(across: _Scale, up: _Scale, unit: str) -> Iterator[str]:
    bottom, left, right = _HEIGHT - _BOTTOM, _LEFT, _WIDTH - _RIGHT
    decimals = max(0, -math.floor(math.log10(up.ticks[1] - up.ticks[0]) + 1e-9))
    for value in up.ticks:
        yield svg.line((left, up(value), right, up(value)), "grid")
        yield svg.text(left - 8, up(value) + 4, f"{value:.{decimals}f}", "soft", "end")
    for value in across.ticks:
        yield svg.line((across(value), bottom, across(value), bottom + 5), "axis")
        yield svg.text(across(value), bottom + 20, f"{value:.0f}", "soft", "middle")
    yield svg.line((left, bottom, right, bottom), "axis")
    yield svg.text((left + right) / 2, _HEIGHT - 12, "step", "soft", "middle")
    yield svg.turned(18, (bottom + _TOP) / 2, unit, "soft")


def _lines(curves: Curves, across: _Scale, up: _Scale) -> Iterator[str]:
    if curves.kept is not None and curves.held and curves.kept != curves.held[-1][0]:
        yield svg.line((across(curves.kept), _TOP, across(curves.kept), _HEIGHT - _BOTTOM), "kept")
    smooth = len(curves.train) >= _SMOOTH_FROM
    if smooth:
        yield _path(thinned(curves.train), across, up, "raw", 1.2)
    yield _path(thinned(smoothed(curves.train) if smooth else curves.train), across, up, "smooth", 2.2)
    yield _path(curves.held, across, up, "held", 1.6)
    for step, value in curves.held:
        if math.isfinite(value):
            yield f'<circle class="dot" cx="{across(step):.1f}" cy="{up(value):.1f}" r="4"/>'


def _path(points: Sequence[Point], across: _Scale, up: _Scale, name: str, width: float) -> str:
    """A line through the finite points; where one is not, it is broken."""
    parts: list[str] = []
    pen_up = True
    for step, value in points:
        if math.isfinite(value):
            parts.append(f"{'M' if pen_up else 'L'}{across(step):.1f} {up(value):.1f}")
        pen_up = not math.isfinite(value)
    return f'<path class="line {name}" stroke-width="{width}" d="{" ".join(parts)}"/>'


def _legend(curves: Curves) -> Iterator[str]:
    """What each line is, from the right edge to the left."""
    items = [("smooth", "training, smoothed"), ("raw", "each step")] if len(curves.train) >= _SMOOTH_FROM else [
        ("smooth", "training")
    ]  # fmt: skip
    if curves.held:
        items.append(("held", "held out"))
        if curves.kept is not None and curves.kept != curves.held[-1][0]:
            items.append(("kept", f"kept: step {curves.kept}"))
    x = float(_WIDTH - _RIGHT)
    for name, text in reversed(items):
        x -= 7.2 * len(text)
        yield svg.text(x, 26, text, "ink")
        yield svg.line((x - 26, 22, x - 6, 22), name, 2.2)
        x -= 40
