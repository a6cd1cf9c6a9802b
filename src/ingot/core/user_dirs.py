"""The folders of the user: where signing keys lie, and what ingot remembers outside of projects."""

from __future__ import annotations

import os
from pathlib import Path


def config_dir() -> Path:
    """``$XDG_CONFIG_HOME/ingot``, by default below ``~/.config``."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "ingot"


def state_dir() -> Path:
    """``$XDG_STATE_HOME/ingot``, by default below ``~/.local/state``."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "ingot"


def _xdg(variable: str, fallback: str) -> Path:
    # The specification: a relative path in the variable is invalid and to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / fallback
