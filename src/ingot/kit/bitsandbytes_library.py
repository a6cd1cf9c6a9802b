"""bitsandbytes, imported without its warnings, and named where it is missing."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from ingot.errors import MissingTool
from ingot.kit.hf import torch_dtype


def part(name: str, use: str, hint: str = "pip install 'ingot[ml]'") -> Any:
    """The module ``bitsandbytes.<name>``. MissingTool (E-MISSING-TOOL) says what it is needed for: ``use``."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that we do not ask for
    try:
        return importlib.import_module(f"bitsandbytes.{name}")
    except ImportError as error:
        raise MissingTool("E-MISSING-TOOL", f"bitsandbytes is not installed; {use}", hint=hint) from error


def nf4_config(dtype: str, skip: list[str] | None = None) -> Any:
    """transformers' config of NF4 with double quantization, computing in ``dtype``; ``skip``: modules left as they are.

    With None the library leaves out what it finds by itself, the output embedding.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(dtype),
        llm_int8_skip_modules=skip,
    )
