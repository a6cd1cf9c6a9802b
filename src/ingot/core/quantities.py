"""Bytes and seconds as people read them."""

from __future__ import annotations

import re


def size_of(text: str) -> int | None:
    """The bytes that a text says, ``64GB`` and ``98.4 MB`` in decimal units, ``16GiB`` in powers of 1024; else None.

    Letters may be of either case.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:([kmgt])(i?))?b", text.strip().lower())
    if found is None:
        return None
    power = "kmgt".index(found[2]) + 1 if found[2] else 0
    base: int = 1024 if found[3] else 1000
    return round(float(found[1]) * float(base**power))


def size_text(count: float) -> str:
    """Bytes in decimal units: ``98.4 MB``, ``512 B``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} TB"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: ``0.03 s``, ``12.4 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about_text(seconds: float) -> str:
    """Predicted seconds, no finer than a prediction is: ``0.4 s``, ``12 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 0.95:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number_text(value: float) -> str:
    """A metric's value: whole numbers grouped by thousands, others with six digits."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.6g}"
