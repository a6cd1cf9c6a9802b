"""Weights that are no numbers: refused as they pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ingot.errors import RefusedInput
from ingot.kit.stream.vocabulary import TORCH_DTYPES, MapRows, Route, Slot, unchanged


class RefuseNonFinite:
    """Passes every tensor as it is. RefusedInput (E-NONFINITE) for one that holds NaN or infinity."""

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``; integers pass unseen."""
        dtype = TORCH_DTYPES[slot.dtype]
        if not dtype.is_floating_point or dtype.itemsize < 2:
            return [Route(slot, unchanged, identity="")]
        return [Route(slot, _check(slot), identity="")]

    def finish(self) -> None:
        """See ``Transform``."""


def _check(slot: Slot) -> MapRows:
    def check(rows: torch.Tensor, start: int) -> torch.Tensor:
        # Far faster than isfinite; a NaN is passed on by both.
        if rows.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(rows)):
            raise _refusal(slot, rows, start)
        return rows

    return check


def _refusal(slot: Slot, rows: torch.Tensor, start: int) -> RefusedInput:
    nan, infinite = int(torch.isnan(rows).sum()), int(torch.isinf(rows).sum())
    where = "its one value"
    if slot.shape:
        first = int((~torch.isfinite(rows)).reshape(rows.shape[0], -1).any(dim=1).nonzero()[0])
        where = f"rows {start} to {start + rows.shape[0] - 1} of {slot.rows}, the first in row {start + first}"
    return RefusedInput(
        "E-NONFINITE",
        f"tensor {slot.name!r} holds values that are not finite",
        facts=[f"{nan} NaN, {infinite} infinite, in {where}"],
        hint="its training went wrong; 'allow_nonfinite: true' takes it as it is, but in no quantized GGUF",
    )
