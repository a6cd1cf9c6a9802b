"""Open a page in the browser of whoever sits at this machine, if somebody does."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

#: What says on Linux that somebody sees windows, or which browser is wanted.
_SEEING = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def show(page: Path) -> bool:
    """Open it; False where there is no browser. A browser in the terminal is none: it would take it over."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in _SEEING):
        return False
    try:
        return webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        return False
