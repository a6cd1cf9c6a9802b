"""The protobuf classes of the Core ML model format, without the rest of coremltools.

``coremltools.proto`` holds generated classes and nothing else, but importing it the plain way runs
``coremltools/__init__``: seconds, torch and log lines. Here the folder alone is a package under a name of our own.
Descriptors live in protobuf's one pool, so these classes are the very same that coremltools has.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ingot.errors import MissingTool

_NAME = "_ingot_coreml_proto"


@cache
def modules() -> tuple[Any, Any]:
    """``Model_pb2`` and ``MIL_pb2``. MissingTool (E-MISSING-TOOL) without coremltools."""
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        raise MissingTool("E-MISSING-TOOL", "coremltools is not installed", hint="pip install 'ingot[coreml]'")
    package = ModuleType(_NAME)
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "proto")]
    sys.modules.setdefault(_NAME, package)
    return importlib.import_module(f"{_NAME}.Model_pb2"), importlib.import_module(f"{_NAME}.MIL_pb2")
