"""AdamW with moments of 32 or 8 bits, and its state as tensors and plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ingot.kit import bitsandbytes_library
from ingot.kit.train.settings import Settings

Named = Mapping[str, torch.nn.Parameter]


def make(settings: Settings, weights: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the settings name. MissingTool (E-MISSING-TOOL) when bitsandbytes is not installed.

    With ``adamw_8bit`` weights of fewer than 4096 numbers keep moments of 32 bits (Dettmers et al. 2022).
    """
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(list(weights), **options)
    hint = "pip install 'ingot[ml]', or use 'optimizer: adamw'"
    library = bitsandbytes_library.part("optim", "'optimizer: adamw_8bit' is its optimizer", hint)
    found: torch.optim.Optimizer = library.AdamW8bit(list(weights), **options)
    return found


def taken(optimizer: torch.optim.Optimizer, weights: Named) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of each weight by ``field/weight``: tensors, and what is no tensor."""
    found = {
        f"{field}/{name}": value for name, weight in weights.items() for field, value in optimizer.state[weight].items()
    }
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in found.items() if name not in tensors}


def put_back(
    optimizer: torch.optim.Optimizer, weights: Named, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Set the state to what ``taken`` gave. Counters stay where the optimizer keeps them, on the CPU."""
    for path, value in {**tensors, **plain}.items():
        field, _, name = path.partition("/")
        weight = weights[name]
        on_device = isinstance(value, torch.Tensor) and value.dim() > 0
        optimizer.state[weight][field] = value.to(weight.device) if on_device else value
