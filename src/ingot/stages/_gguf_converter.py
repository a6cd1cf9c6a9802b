"""Another converter than ingot's own, as a spec names it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from ingot.core.stage import Frozen, Source


class Checkout(Frozen):
    """What of a llama.cpp checkout makes a GGUF: the converter, its package and gguf-py. Only their content counts."""

    script: Source
    conversion: Source
    gguf: Source


def _checkout(value: object) -> object:
    """``llama_cpp: PATH`` is written as a folder; the resolved spec holds the parts that are read."""
    if isinstance(value, str):
        root = value.rstrip("/")
        parts = {"script": "convert_hf_to_gguf.py", "conversion": "conversion/**/*.py", "gguf": "gguf-py/gguf/**/*.py"}
        return Checkout(**{name: Source(path=f"{root}/{path}") for name, path in parts.items()})
    if isinstance(value, dict):
        return Checkout(**{name: Source.model_validate(part) for name, part in value.items()})
    return value


class Converter(Frozen):
    """Another converter than ingot's own."""

    llama_cpp: Annotated[Checkout, BeforeValidator(_checkout, json_schema_input_type=str)] = Field(
        description="a llama.cpp checkout in the project, whose convert_hf_to_gguf.py is run"
    )
