"""The same package by Core ML's own ``predict``, on a Mac; nowhere else is there anything to run it.

Written against coremltools 9.0 and its documentation; ingot's tests do not run Core ML. Layers cannot be shown: Core
ML gives outputs alone. Functions share one state, which the function that reads prompts makes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.mil.interface import Interface
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.run import Runner, Wanted
from ingot.kit.mil.types import Array


def available() -> bool:
    """Whether Core ML is here."""
    return sys.platform == "darwin"


class Native:
    """What ``Language`` runs, by Core ML. The interpreter's view of the package says what it takes and gives."""

    def __init__(self, package: Path, opened: MilModel) -> None:
        """Loads every function of a package that ``opened`` found sound."""
        import coremltools as ct

        self._opened = opened
        several = len(opened.functions) > 1
        self._models = {
            name: ct.models.MLModel(str(package), function_name=name if several else None) for name in opened.functions
        }

    @property
    def functions(self) -> Mapping[str, Interface]:
        """Their interfaces by name."""
        return self._opened.functions

    @property
    def default(self) -> str:
        """The one that runs when none is named."""
        return self._opened.default

    @property
    def runners(self) -> Mapping[str, Runner]:
        """Their programs by name."""
        return self._opened.runners

    def state(self, function: str | None = None) -> Any:
        """A state that nothing was written to; None where the function has none."""
        name = function or self.default
        return self._models[name].make_state() if self.functions[name].states else None

    def compute(self, inputs: Mapping[str, Any], function: str, state: Any, wanted: Wanted) -> dict[str, Array]:
        """The outputs. RefusedInput (E-MIL-PROBE) where values within the program are wanted."""
        if wanted.keep:
            raise RefusedInput("E-MIL-PROBE", "Core ML does not show what is computed within a program")
        self.functions[function].check(function, inputs)
        found = self._models[function].predict(dict(inputs), state=state)
        rows = wanted.rows or slice(None)
        return {name: np.asarray(value, np.float32)[..., rows, :] for name, value in found.items()}
