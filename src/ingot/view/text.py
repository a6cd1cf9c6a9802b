"""How durations, sizes, counts and metrics are written, and lines that are cut and never wrap."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: A piece of a line: its text and a style of ``STYLES``.
Piece = tuple[str, str]
Line = Sequence[Piece]

#: Styles by name (a valid rich style each) with the terminal's number for the same.
STYLES: Mapping[str, str] = {
    "": "",
    "bold": "1",
    "dim": "2",
    "red": "1;31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}

#: Metrics that say most of a target, best first; the first two that a receipt has are shown.
HEADLINE = (
    "pattern_accuracy",
    "acc_norm",
    "acc",
    "exact_match",
    "exact_match_strict",
    "pass_at_1",
    "preference_accuracy",
    "win_rate",
    "loss_rate",
    "eval_loss",
    "perplexity",
    "kl_divergence",
    "rouge_l",
    "bleu",
    "repetition",
    "ratio",
    "ece_temperature",
    "bits_per_weight",
    "sparsity",
    "bytes_per_token",
    "vocabulary",
    "train_rows",
    "rows",
    "documents",
    "trainable_parameters",
    "parameters",
    "tokens",
)
_ELLIPSIS = "…"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``0.21 s``, ``4.2 s``, ``13 s``, ``2m 13s``, ``1h 02m``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def clock(seconds: float) -> str:
    """Whole seconds of something that still runs: ``0 s``, ``13 s``, ``2m 13s``."""
    return f"{int(seconds)} s" if seconds < 60 else duration(int(seconds))


def size(count: float) -> str:
    """Bytes in powers of ten with three figures: ``512 B``, ``105 MB``, ``3.02 GB``."""
    return f"{number(count)}B" if count >= 999.5 else f"{count:.0f} B"


def number(value: float) -> str:
    """A number with three figures and a prefix above 1000, ending before its unit: ``12.3 M``, ``40 ``."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale * 0.9995:
            return f"{_three(value / scale)} {prefix}"
    return f"{_three(value)} "


def _three(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"


def amount(value: float, unit: str) -> str:
    """A value with its unit: ``105 MB``, ``134.5 M parameters``, ``3.10``; counts below 100 000 in full."""
    if unit == "B":
        return size(value)
    word = "" if unit == "1" else f" {unit}"
    if value == int(value) and abs(value) < 100_000:
        return f"{int(value)}{word}"
    text = number(value).rstrip() if abs(value) >= 1000 else _three(value)
    return f"{text}{word}"


def rate(per_second: float, unit: str) -> str:
    """Units per second: ``3.1 steps/s``, ``85.2 MB/s``; a slow one per minute."""
    if unit == "B":
        return f"{size(per_second)}/s"
    if 0 < per_second < 0.1:
        return f"{_three(per_second * 60)} {unit}/min"
    return f"{number(per_second).rstrip()} {unit}/s"


def figure(name: str, value: object) -> str:
    """One live figure: ``loss 2.31``; small numbers as ``1.5e-04``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} {value}"
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        return f"{name} {value:.1e}"
    return f"{name} {_three(value)}"


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """At most two measured facts of a receipt; ``X_before`` and ``X_after`` (or ``X``) read as one change."""
    facts = []
    for name in HEADLINE:
        after = metrics.get(name, metrics.get(f"{name}_after"))
        if after is None:
            continue
        unit = str(after["unit"])
        before = metrics.get(f"{name}_before")
        shown = amount(after["value"], unit if unit in {"B", name} else "1")
        if before is not None:
            shown = f"{amount(before['value'], '1')} → {shown}"
        facts.append(shown if shown.endswith(name) else f"{name} {shown}")
    return facts[:2]


def plural(count: int, noun: str) -> str:
    """``1 target``, ``14 targets``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def printable(text: str) -> str:
    """Text without control characters: what a stage or a log says cannot steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def join(parts: Iterable[Line], gap: str = "  ") -> list[Piece]:
    """Lines side by side with a gap between those that are not empty."""
    joined: list[Piece] = []
    for part in parts:
        if any(text for text, _ in part):
            joined += [(gap, ""), *part] if joined else part
    return joined


def length(line: Line) -> int:
    """Cells that a line takes on a terminal."""
    return sum(cells(text) for text, _ in line)


def cells(text: str) -> int:
    """Cells of a text: East Asian wide characters count two, combining marks none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def cut(line: Line, width: int) -> list[Piece]:
    """The line in at most ``width`` cells; an ellipsis stands for what is left out."""
    if length(line) <= width:
        return list(line)
    kept: list[Piece] = []
    room = max(width - 1, 0)
    for text, style in line:
        short = _prefix(text, room)
        kept.append((short, style))
        room -= cells(short)
        if short != text:
            break
    return [*kept, (_ELLIPSIS[:width], "")]


def _prefix(text: str, room: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += cells(char)
        if used > room:
            return text[:index]
    return text


def render(line: Line, *, color: bool) -> str:
    """The line as one string, with the terminal's colours where wanted."""
    if not color:
        return "".join(text for text, _ in line).rstrip()
    return "".join(f"\x1b[{STYLES[style]}m{text}\x1b[0m" if STYLES[style] else text for text, style in line)


def wants_color(environ: Mapping[str, str] | None = None) -> bool:
    """Whether colours are welcome: ``NO_COLOR`` (no-color.org) forbids them."""
    return not (os.environ if environ is None else environ).get("NO_COLOR")
