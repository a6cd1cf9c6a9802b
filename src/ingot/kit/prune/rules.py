"""Which weights of a module go, by each method: one ``Rule`` a module, for weights that flow by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ingot.kit import sparsity
from ingot.kit.prune import wanda
from ingot.kit.prune.flowing import Rule
from ingot.kit.prune.goals import Goal
from ingot.kit.stream.vocabulary import Slot

#: By module: its goal, and the slot of its weight.
Goals = Mapping[str, tuple[Goal, Slot]]


def by_magnitude(goals: Goals) -> dict[str, Rule]:
    """The smallest by size: of the whole tensor, or of each block."""
    return {module: _magnitude(goal, slot) for module, (goal, slot) in goals.items()}


def _magnitude(goal: Goal, slot: Slot) -> Rule:
    def apply(rows: torch.Tensor, _start: int) -> torch.Tensor:
        mask = _pattern(rows.float().abs(), goal) if goal.block else sparsity.lowest(rows, goal.share)
        return sparsity.dropped(rows, mask)

    identity = f"magnitude {goal.keep}:{goal.block}" if goal.block else f"magnitude {goal.share}"
    return Rule(goal, apply, _least(goal, slot), whole=not goal.block, identity=identity)


def by_wanda(goals: Goals, norms: Mapping[str, torch.Tensor]) -> dict[str, Rule]:
    """The lowest |W|·‖X‖ of each row, or of each block."""

    def rule(module: str, goal: Goal, slot: Slot) -> Rule:
        def apply(rows: torch.Tensor, _start: int) -> torch.Tensor:
            scores = wanda.scores(rows, norms[module])
            mask = _pattern(scores, goal) if goal.block else sparsity.lowest_per_row(scores, goal.share)
            return sparsity.dropped(rows, mask)

        return Rule(goal, apply, _least(goal, slot, by_row=True))

    return {module: rule(module, goal, slot) for module, (goal, slot) in goals.items()}


def from_model(goals: Goals, model: Any, *, by_row: bool = False) -> dict[str, Rule]:
    """The weights that the modules of ``model`` have by now, whatever made them; ``by_row``: a share of each row."""

    def rule(module: str, goal: Goal, slot: Slot) -> Rule:
        return Rule(goal, _taken(model.get_submodule(module).weight.detach()), _least(goal, slot, by_row=by_row))

    return {module: rule(module, goal, slot) for module, (goal, slot) in goals.items()}


def _taken(weight: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    def apply(rows: torch.Tensor, start: int) -> torch.Tensor:
        return weight[start : start + len(rows)].to("cpu", rows.dtype)

    return apply


def _pattern(scores: torch.Tensor, goal: Goal) -> torch.Tensor:
    return sparsity.n_of_m(scores, goal.keep, goal.block)


def _least(goal: Goal, slot: Slot, *, by_row: bool = False) -> int:
    return goal.least(slot.rows, slot.elements // max(1, slot.rows), by_row=by_row)
