"""Zeros that training leaves zero, in a model in memory: by a mask over the weights, or over a low-rank change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Patterns that are looked for where nobody says which a module has, the tightest first.
_PATTERNS = ((1, 4), (2, 4), (4, 8))


@dataclass(frozen=True)
class Held:
    """Which weights of which modules are zero: ``masks`` by module, True where a weight stays zero."""

    masks: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: Any, modules: Iterable[str]) -> Held:
        """The zeros of these modules' weights as they are; modules without one are left out."""
        found = {name: model.get_submodule(name).weight.detach() == 0 for name in modules}
        return cls({name: mask for name, mask in found.items() if bool(mask.any())})

    def hold(self, model: Any) -> list[Any]:
        """Keep gradients away from them, so that an optimizer's moments stay zero there too; gives the hooks."""
        return [model.get_submodule(name).weight.register_hook(_without(mask)) for name, mask in self.masks.items()]

    def put_back(self, model: Any) -> None:
        """Set them to zero again, whatever a step has made of them."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                model.get_submodule(name).weight.masked_fill_(mask, 0.0)


def _without(mask: torch.Tensor) -> Any:
    return lambda gradient: gradient.masked_fill(mask, 0.0)


class MaskedLora(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into
    """A linear layer whose weight is W + keep · (alpha / rank) · B·A: where ``keep`` is 0 there is no change.

    What the forward pass multiplies by is what ``merged`` gives, so what was trained is what is written.
    """

    def __init__(self, linear: torch.nn.Linear, zero: torch.Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(requires_grad=False)
        self.register_buffer("keep", ~zero, persistent=False)
        self.scale = alpha / rank
        device = linear.weight.device
        self.lora_a = torch.nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_b = torch.nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        torch.nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)  # as PEFT and the LoRA paper's code do

    def merged(self) -> torch.Tensor:
        """The weight that the layer has."""
        return self.linear.weight + torch.where(self.keep, self.scale * (self.lora_b @ self.lora_a), 0.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The output of a linear layer with that weight."""
        return torch.nn.functional.linear(inputs, self.merged(), self.linear.bias)


def attach(model: Any, held: Held, rank: int, alpha: float) -> None:
    """Put a ``MaskedLora`` around every linear layer that has zeros; nothing else is trained."""
    model.requires_grad_(requires_grad=False)
    for name, mask in held.masks.items():
        linear = model.get_submodule(name)
        if isinstance(linear, torch.nn.Linear):
            model.set_submodule(name, MaskedLora(linear, mask, rank, alpha))


def merge(model: Any) -> None:
    """Put the plain layers back, with the weights that they have by now."""
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, MaskedLora)]
    for name, module in wrapped:
        with torch.no_grad():
            module.linear.weight.copy_(module.merged())
        model.set_submodule(name, module.linear)


def pattern_of(zero: torch.Tensor) -> str | None:
    """The tightest N:M of a few usual ones that a weight's zeros have; None: none of them."""
    for keep, block in _PATTERNS:
        if zero.shape[-1] % block == 0 and int((~zero).reshape(-1, block).sum(dim=1).max()) <= keep:
            return f"{keep}:{block}"
    return None


def patterns(held: Held, listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The N:M of each module that has one: what ``prune.json`` lists where it does, else what its zeros have."""
    told = {str(module.get("name")): module.get("pattern") for module in listed}
    found = {name: told.get(name) or pattern_of(mask) for name, mask in held.masks.items()}
    return {name: pattern for name, pattern in found.items() if isinstance(pattern, str)}
