"""SparseGPT through llm-compressor: what stays of a row makes up for what goes (Frantar & Alistarh 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core.stage import Progress
from ingot.errors import StageFailed
from ingot.kit import oneshot
from ingot.kit.prune.goals import Goal


@dataclass(frozen=True)
class SparseGpt:
    """``block_size`` columns are decided at once; ``dampening`` of the mean of the Hessian's diagonal is added to it.

    ``keep_zeros``: what is zero already stays zero, and counts.
    """

    block_size: int = 128
    dampening: float = 0.01
    keep_zeros: bool = False

    def prune(
        self, model: Any, goals: Mapping[str, Goal], texts: Sequence[Sequence[int]],
        settings: oneshot.Settings, progress: Progress,
    ) -> None:  # fmt: skip
        """Prune the modules of ``model`` in place, layer by layer, each on what the pruned layers before it give.

        A share is taken from each ``block_size`` columns over all rows, rounded up. StageFailed: E-ONESHOT, or
        E-PRUNE-HESSIAN where a layer's Hessian cannot be inverted (the library would go on without one).
        """
        by_goal: dict[Goal, list[str]] = {}
        for module, goal in goals.items():
            by_goal.setdefault(goal, []).append(module)
        modifiers = [self._modifier(goal, modules) for goal, modules in by_goal.items()]
        warnings = oneshot.apply(model, texts, modifiers, settings, progress)
        if any("invert hessian" in warning for warning in warnings):
            raise StageFailed(
                "E-PRUNE-HESSIAN",
                "what flows through the model does not tell enough: a Hessian has no inverse",
                facts=[f"dampening {self.dampening:g}", f"{sum(map(len, texts))} tokens of calibration"],
                hint="raise 'dampening', or give more calibration documents",
            )

    def _modifier(self, goal: Goal, modules: Sequence[str]) -> Any:
        # The library counts those that go: its "3:4" leaves one.
        structure = f"{goal.block - goal.keep}:{goal.block}" if goal.block else "0:0"
        share = (goal.block - goal.keep) / goal.block if goal.block else goal.share
        return oneshot.modifier(
            "pruning", "SparseGPTModifier", sparsity=share, mask_structure=structure, block_size=self.block_size,
            dampening_frac=self.dampening, preserve_sparsity_mask=self.keep_zeros,
            targets=[f"re:^{re.escape(module)}$" for module in modules],
        )  # fmt: skip
