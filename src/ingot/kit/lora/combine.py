"""One or several adapters as one change.

``linear``, the default, adds the changes: ``W + Σ wᵢ·sᵢ·Bᵢ·Aᵢ`` (PEFT's ``add_weighted_adapter`` calls it ``cat``).
What PEFT calls ``linear`` is ``factors`` here: A and B are added for themselves, each times ``√(wᵢ·sᵢ)``, so that the
product holds every Bᵢ·Aⱼ too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from ingot.errors import RefusedInput
from ingot.kit.lora.read import Adapter, Factors

Combine = Literal["linear", "factors"]


@dataclass(frozen=True)
class Change:
    """What is to be done, by names of the base's modules (``replaced``: of its weights)."""

    factors: Mapping[str, tuple[Factors, ...]] = field(default_factory=dict)
    biases: Mapping[str, tuple[tuple[torch.Tensor, float], ...]] = field(default_factory=dict)
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tokens: Mapping[str, tuple[tuple[int, ...], torch.Tensor]] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    tied: bool = False

    def names(self) -> dict[str, str]:
        """Every weight it touches, with the module it was trained as."""
        modules = {f"{module}.weight": module for module in (*self.factors, *self.tokens)}
        biases = {f"{module}.bias": module for module in self.biases}
        return modules | biases | {name: name.rpartition(".")[0] for name in self.replaced}


def combine(adapters: Sequence[Adapter], weights: Sequence[float], how: Combine = "linear") -> Change:
    """The change that the adapters make together.

    RefusedInput: E-MERGE-WEIGHTS unless there is one weight an adapter, E-MERGE-METHOD for a part that cannot be scaled
    or added (DoRA's magnitudes, replaced weights and tokens), E-MERGE-SHAPE when A or B differ in shape.
    """
    if len(weights) != len(adapters):
        raise RefusedInput(
            "E-MERGE-WEIGHTS",
            f"{len(adapters)} adapters need {len(adapters)} weights, and there are {len(weights)}",
            hint="weights: one number an adapter, in the order of 'from'",
        )
    if len(adapters) > 1 or weights[0] != 1:
        for number, adapter in enumerate(adapters, 1):
            _refuse_fixed(adapter, number)
    factors: dict[str, tuple[Factors, ...]] = {}
    biases: dict[str, tuple[tuple[torch.Tensor, float], ...]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for module, found in adapter.factors.items():
            factors[module] = (*factors.get(module, ()), replace(found, scale=found.scale * weight))
        for module, (bias, scale) in adapter.biases.items():
            biases[module] = (*biases.get(module, ()), (bias, scale * weight))
    for module, several in factors.items():
        if len({(item.shape, item.embedding) for item in several}) > 1:
            raise RefusedInput(
                "E-MERGE-SHAPE",
                f"the adapters were made for different models: {module!r} has two shapes",
                facts=[", ".join(str(item.shape) for item in several)],
            )
    if how == "factors":
        factors = {module: (_added(module, several),) for module, several in factors.items()}
    return Change(
        factors,
        biases,
        {name: tensor for adapter in adapters for name, tensor in adapter.replaced.items()},
        {name: rows for adapter in adapters for name, rows in adapter.tokens.items()},
        any(adapter.settings.fan_in_fan_out for adapter in adapters),
        any(adapter.settings.tied for adapter in adapters),
    )


def _refuse_fixed(adapter: Adapter, number: int) -> None:
    kinds = {
        "DoRA's magnitudes": [name for name, item in adapter.factors.items() if item.magnitude is not None],
        "trained tokens": list(adapter.tokens),
        "replaced weights": [name for name in adapter.replaced if not _is_base_embedding(name, adapter)],
    }
    for what, names in kinds.items():
        if names:
            raise RefusedInput(
                "E-MERGE-METHOD",
                f"adapter {number} holds {what}, which cannot be weighted or added",
                facts=[f"{len(names)}, the first: {names[0]}"],
                hint="merge it alone, with weight 1",
            )


def _is_base_embedding(name: str, adapter: Adapter) -> bool:
    """Whether it is the base's own embedding, which PEFT saves beside the change of it."""
    return name.removesuffix(".weight") in adapter.factors


def _added(module: str, several: Sequence[Factors]) -> Factors:
    """A and B added for themselves, as PEFT's ``linear`` does; a negative weight's sign goes to A."""
    if len({item.down.shape[0] for item in several}) > 1:
        ranks = ", ".join(str(item.down.shape[0]) for item in several)
        raise RefusedInput(
            "E-MERGE-SHAPE", f"combine: factors needs equal ranks, and those of {module!r} are {ranks}",
            hint="combine: linear adds changes of any rank",
        )  # fmt: skip
    roots = [math.sqrt(abs(item.scale)) for item in several]
    signs = [math.copysign(1, item.scale) for item in several]
    down = sum(item.down.float() * (root * sign) for item, root, sign in zip(several, roots, signs, strict=True))
    up = sum(item.up.float() * root for item, root in zip(several, roots, strict=True))
    assert isinstance(down, torch.Tensor)
    assert isinstance(up, torch.Tensor)
    return Factors(down, up, 1.0, several[0].embedding)
