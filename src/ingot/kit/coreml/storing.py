"""Operations that decode stored matrices, put into a program while coremltools converts it.

A pass of coremltools' pipeline: it replaces each constant matrix by the operation of the target's set that decodes it,
with arguments of the right sizes and types that take no memory. The numbers come later (``kit.coreml.filling``).
"""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass

from ingot.kit.coreml.checkpoint import blank
from ingot.kit.coreml.encode import parts
from ingot.kit.coreml.settings import Settings

_NAME = "store_matrices"
SUFFIXES = {"int8": "_quantized", "int4": "_quantized"}


def suffix(settings: Settings) -> str:
    """What the name of a decoded matrix ends in, as coremltools' own passes name it; empty for plain ones."""
    return "" if settings.plain else SUFFIXES.get(settings.weights, "_palettized")


@register_pass(namespace="ingot", name=_NAME)
class StoreMatrices(AbstractGraphPass):  # type: ignore[misc]  # coremltools is Any to mypy here
    """See the module."""

    def __init__(self) -> None:
        """Options come from the pipeline: ``settings`` and ``names``, the constants that are matrices."""
        self.settings: Settings | None = None
        self.names: frozenset[str] = frozenset()

    def apply(self, prog: Any) -> None:
        """Replace them in every function of a program."""
        assert self.settings is not None
        for function in prog.functions.values():
            self._apply(function)

    @block_context_manager  # type: ignore[untyped-decorator]  # coremltools is Any to mypy here
    def _apply(self, block: Any) -> None:
        assert self.settings is not None
        found = [op for op in block.operations if op.op_type == "const" and sane(op.outputs[0].name) in self.names]
        for index, operation in enumerate(found):
            decoded = _decoding(operation, self.settings, 8 * index)
            block.replace_uses_of_var_after_op(
                anchor_op=operation, old_var=operation.outputs[0], new_var=decoded, no_check_var_types=True
            )
            block.remove_ops([operation])


def _decoding(operation: Any, settings: Settings, index: int) -> Any:
    """The operation that decodes a matrix, with arguments to be filled, all different from those of any other."""
    shape = tuple(operation.outputs[0].shape)
    given: dict[str, Any] = {
        name: blank(sizes, kind, index + place)
        for place, (name, (sizes, kind)) in enumerate(parts(shape, settings).items())
    }
    if "zero_point" in given:
        given["zero_point"] = np.zeros_like(given["zero_point"])
        given["axis"] = np.int32(0)
    if "lut" in given and given["lut"].ndim == 1:
        given["shape"] = np.array(shape, np.uint32)
    kind = "constexpr_lut_to_dense" if "lut" in given else "constexpr_blockwise_shift_scale"
    kind = "constexpr_affine_dequantize" if "zero_point" in given else kind
    return getattr(Builder, kind)(**given, before_op=operation, name=operation.name + suffix(settings))


def sane(name: str) -> str:
    """A name as a saved program has it."""
    return name.replace(".", "_")


def pipeline(settings: Settings, names: frozenset[str]) -> Any:
    """coremltools' own passes, and this one after them unless the weights are plain."""
    result = ct.PassPipeline.DEFAULT
    if not settings.plain:
        result.append_pass(f"ingot::{_NAME}")
        result.set_options(f"ingot::{_NAME}", {"settings": settings, "names": names})
    return result
