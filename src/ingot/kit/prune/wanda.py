"""Wanda scores: weight magnitude times the norm of what flows into it (Sun et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ingot.kit.calibration import watched


def input_norms(
    model: Any, modules: Sequence[str], rows: Sequence[Sequence[int]], report: Callable[[int, int], None]
) -> dict[str, torch.Tensor]:
    """‖X_j‖₂ of every input feature of the modules over all tokens of ``rows``, fp32, by module name.

    All activations are those of the unpruned model, collected in one pass; ``report`` gets (rows, tokens) done.
    Squares are summed in fp64, so that the order of rows is not seen in the result.
    """
    squares: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).double().square().sum(dim=0)
            squares[name] = squares[name] + seen if name in squares else seen

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in modules]
    watched(model, rows, handles, report)
    return {name: total.sqrt().float().cpu() for name, total in squares.items()}


def scores(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|W_ij| · ‖X_j‖₂, fp32."""
    return weight.float().abs() * norms
