"""A saved package as something that runs: opened, checked as a whole, then called function by function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.mil.interface import interfaces
from ingot.kit.mil.package import open_package
from ingot.kit.mil.program import read_program
from ingot.kit.mil.run import Runner, Wanted, unsupported
from ingot.kit.mil.types import Array
from ingot.kit.mil.weights import Weights

Accumulate = Literal["float32", "float16"]

#: What a run may be asked for besides outputs: nothing.
PLAIN = Wanted()


class MilModel:
    """An ML program: ``functions`` by name with their interfaces, ``default`` the one that runs when none is named."""

    def __init__(self, path: Path, *, accumulate: Accumulate = "float32", keep: int | None = None) -> None:
        """Opens a ``.mlpackage``; nothing runs before all of it is found sound and every operation is known.

        ``accumulate``: in what sums of fp16 programs are taken (``ops.attention``, ``ops.reducing``). ``keep``: bytes
        of decoded weights to hold (None: all); what is beyond is decoded again at each use.

        RefusedInput: E-MIL-PACKAGE, E-MIL-BLOB, E-MIL-PROGRAM, E-MIL-OP; MissingTool without coremltools.
        """
        package = open_package(path)
        functions = read_program(package.model)
        if missing := unsupported(functions):
            raise RefusedInput(
                "E-MIL-OP",
                f"the program has {len(missing)} operations that the interpreter does not run",
                facts=missing[:12],
            )
        self.functions, self.default = interfaces(package.model, functions)
        weights = Weights(package, keep)
        self.runners = {
            name: Runner(function, weights, narrow=accumulate == "float16") for name, function in functions.items()
        }

    def state(self, function: str | None = None) -> dict[str, Array]:
        """A state that nothing was written to: zeros."""
        kinds = self.functions[function or self.default].states
        return {
            name: np.zeros([size or 0 for size in kind.shape], kind.dtype.inside)
            for name, kind in kinds.items()
            if kind.elements
        }

    def run(
        self, inputs: Mapping[str, Any], *, function: str | None = None, state: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """Outputs by name, in the types that the program declares; ``state`` (of ``state()``) is changed.

        RefusedInput: E-MIL-INPUT for inputs that are not declared, E-MIL-RUN where an operation cannot be computed.
        """
        name = function or self.default
        found = self.compute(inputs, name, state, PLAIN)
        types = self.runners[name].function.types()
        return {key: value.astype(types[key].dtype.outside) for key, value in found.items()}

    def compute(
        self, inputs: Mapping[str, Any], function: str, state: dict[str, Array] | None, wanted: Wanted
    ) -> dict[str, Array]:
        """As ``run``, with fp16 numbers in fp32 arrays, and what else is ``wanted``."""
        interface = self.functions[function]
        held = self.state(function) if state is None else state
        if {name: value.shape for name, value in held.items()} != {
            name: kind.shape for name, kind in interface.states.items()
        }:
            raise RefusedInput("E-MIL-INPUT", f"the state is not one of function {function}")
        return self.runners[function].run(interface.check(function, inputs), held, wanted)
