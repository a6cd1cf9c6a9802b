"""Weights in another dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ingot.errors import RefusedInput
from ingot.kit.stream.vocabulary import DTYPE_NAMES, TORCH_DTYPES, MapRows, Route, Slot, unchanged


@dataclass(frozen=True)
class Cast:
    """Rounds floating-point tensors to one dtype; others pass. RefusedInput (E-DTYPE-RANGE) beyond float16."""

    dtype: torch.dtype

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        before = TORCH_DTYPES[slot.dtype]
        if not before.is_floating_point or before == self.dtype:
            return [Route(slot, unchanged, identity="")]
        name = DTYPE_NAMES[self.dtype]
        return [Route(replace(slot, dtype=name), self._cast(slot.name), identity=f"cast {slot.dtype} {name}")]

    def finish(self) -> None:
        """See ``Transform``."""

    def _cast(self, name: str) -> MapRows:
        def cast(rows: torch.Tensor, _start: int) -> torch.Tensor:
            result = rows.to(self.dtype)
            if self.dtype == torch.float16 and rows.numel():
                _refuse_overflow(name, rows, result)
            return result

        return cast


def _refuse_overflow(name: str, rows: torch.Tensor, result: torch.Tensor) -> None:
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(result)):
        return
    if bool((result.isinf() & ~rows.isinf()).any()):
        raise RefusedInput(
            "E-DTYPE-RANGE",
            f"tensor {name} holds weights beyond what float16 can hold",
            facts=[f"largest absolute value: {float(rows.abs().max()):g}, float16's: 65504"],
            hint="use dtype: bfloat16",
        )
