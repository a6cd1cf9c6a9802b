"""The colours of a page, on light and on dark paper; charts name them as CSS variables and follow the page's theme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Texts and lines first, then words of a state, then series of charts.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff", "panel": "#f6f8fa", "ink": "#1f2328", "soft": "#57606a", "line": "#d0d7de",
    "grid": "#e6eaef", "link": "#0550ae", "ok": "#116329", "warn": "#7a4b00", "bad": "#a40e26",
    "c1": "#0969da", "c2": "#bc4c00", "c3": "#1a7f37", "c4": "#8250df", "c5": "#6e7781",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "paper": "#0d1117", "panel": "#161b22", "ink": "#f0f6fc", "soft": "#9da7b3", "line": "#3d444d",
    "grid": "#262c34", "link": "#79b8ff", "ok": "#56d364", "warn": "#e3b341", "bad": "#ff9492",
    "c1": "#58a6ff", "c2": "#ffa657", "c3": "#56d364", "c4": "#d2a8ff", "c5": "#9198a1",
}  # fmt: skip
#: Colours in which text is written, on each of the papers it stands on.
TEXTS = ("ink", "soft", "link", "ok", "warn", "bad")
PAPERS = ("paper", "panel")
#: Colours of marks in charts.
SERIES = ("c1", "c2", "c3", "c4", "c5")


def css() -> str:
    """The variables: dark where the system or the reader says so."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in colours.items()) for colours in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def var(name: str) -> str:
    """A colour as a chart of a page names it."""
    return f"var(--{name})"


def fixed(value: Any, colours: Mapping[str, str] = LIGHT) -> Any:
    """A chart with its colours as they are on one paper: for a picture, around which no page sets any."""
    if isinstance(value, Mapping):
        return {key: fixed(item, colours) for key, item in value.items()}
    if isinstance(value, list):
        return [fixed(item, colours) for item in value]
    if isinstance(value, str) and value.startswith("var(--") and value[6:-1] in colours:
        return colours[value[6:-1]]
    return value


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours by WCAG 2: 1 to 21."""
    bright, dim = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
