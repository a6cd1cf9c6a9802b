"""bitsandbytes, imported without its warnings, and named where it is missing."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from ingot.errors import MissingTool


def part(name: str, use: str, hint: str = "pip install 'ingot[ml]'") -> Any:
    """The module ``bitsandbytes.<name>``. MissingTool (E-MISSING-TOOL) says what it is needed for: ``use``."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that we do not ask for
    try:
        return importlib.import_module(f"bitsandbytes.{name}")
    except ImportError as error:
        raise MissingTool("E-MISSING-TOOL", f"bitsandbytes is not installed; {use}", hint=hint) from error
