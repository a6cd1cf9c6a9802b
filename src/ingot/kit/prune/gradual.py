"""Gradual pruning: in several levels, with training between them that keeps what is zero already.

The share after level t of n is s·(1 − (1 − t/n)³) (Zhu & Gupta 2017, "To prune, or not to prune"), or s·t/n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ingot.core.stage import Given, Progress
from ingot.kit import device as devices
from ingot.kit import hf, oneshot
from ingot.kit.prune import rules, wanda
from ingot.kit.prune.flowing import Rule
from ingot.kit.prune.goals import Goal
from ingot.kit.prune.held import Held
from ingot.kit.prune.rules import Goals
from ingot.kit.prune.sparsegpt import SparseGpt
from ingot.kit.train import next_token, run, text
from ingot.kit.train.settings import Settings


@dataclass(frozen=True)
class Between:
    """The training after each level but the last; see the parameters of ``prune``."""

    levels: int
    shape: str
    settings: Settings
    seed: int
    device: str
    #: What ``text.read`` asks for.
    max_length: int
    too_long: str
    completion_only: bool
    eval_documents: int
    packing: bool

    def share(self, final: float, level: int) -> float:
        """The share after a level, counted from 1."""
        done = level / self.levels
        return final * (done if self.shape == "linear" else 1 - (1 - done) ** 3)


@dataclass
class Gradual:
    """A model in memory on its way to its goals."""

    method: str
    between: Between
    sparsegpt: SparseGpt
    texts: Sequence[Sequence[int]]
    goals: Goals

    def run(self, given: Given, progress: Progress) -> tuple[Any, list[dict[str, object]]]:
        """The pruned model, and what each level was measured to do; training goes on where an attempt was ended.

        RefusedInput: E-DATASET-*, E-CONTEXT, E-DEVICE. StageFailed: E-TRAIN-DIVERGED, E-ONESHOT, E-PRUNE-HESSIAN.
        """
        device = devices.resolve(self.between.device)
        model = hf.load_model(given.one("model"), "float32").to(device)
        model.requires_grad_(requires_grad=False)
        told: list[dict[str, object]] = []
        for level in range(1, self.between.levels + 1):
            progress.phase(f"prune, level {level} of {self.between.levels}")
            self._prune(model, level, given, progress)
            held = Held.of(model, self.goals)
            zeros = sum(int(mask.sum()) for mask in held.masks.values())
            one: dict[str, object] = {
                "level": level, "sparsity": zeros / sum(slot.elements for _, slot in self.goals.values()),
            }  # fmt: skip
            told.append(one | (self._train(model, held, level, given, progress) if level < self.between.levels else {}))
        return model, told

    def _prune(self, model: Any, level: int, given: Given, progress: Progress) -> None:
        goals = {
            module: (Goal(share=self.between.share(goal.share, level)), slot)
            for module, (goal, slot) in self.goals.items()
        }
        if self.method == "sparsegpt":
            settings = oneshot.Settings(devices.resolve(self.between.device), given.threads)
            wanted = {module: goal for module, (goal, _) in goals.items()}
            replace(self.sparsegpt, keep_zeros=level > 1).prune(model, wanted, self.texts, settings, progress)
            return
        for module, rule in self._rules(model, goals, progress).items():
            weight = model.get_submodule(module).weight
            with torch.no_grad():
                weight.copy_(rule.apply(weight.detach().cpu(), 0))

    def _rules(self, model: Any, goals: Goals, progress: Progress) -> Mapping[str, Rule]:
        if self.method == "magnitude":
            return rules.by_magnitude(goals)
        norms = wanda.input_norms(
            model, list(goals), self.texts,
            lambda done, tokens: progress(done, len(self.texts), "documents", tokens=tokens),
        )  # fmt: skip
        return rules.by_wanda(goals, norms)

    def _train(self, model: Any, held: Held, level: int, given: Given, progress: Progress) -> dict[str, object]:
        """Train the modules with goals, zeros held; gives the held-out loss before and after, where any is held out."""
        folder = given.checkpoints / f"level-{level}" if given.checkpoints else None
        given = replace(given, seed=self.between.seed + level, checkpoints=folder)
        for module in self.goals:
            model.get_submodule(module).weight.requires_grad_(requires_grad=True)
        hooks = held.hold(model)
        try:
            with run.prepared(self.between, given):
                texts = text.read(self.between, given, model)
                layout = next_token.layout_for(
                    model, texts.sample, self.between.max_length, packing=self.between.packing
                )
                task = run.Task(
                    model, next_token.NextToken(layout), texts.train, layout, held=texts.held,
                    chance=next_token.chance(model), after_step=lambda: held.put_back(model),
                    autocast=self.between.settings.dtype == "bfloat16", what="the pruned model",
                )  # fmt: skip
                outcome = run.train(self.between.settings, task, given, progress)
        finally:
            for hook in hooks:
                hook.remove()
            model.eval().requires_grad_(requires_grad=False)
        found: dict[str, object] = {"steps": len(outcome.history)}
        if outcome.evals:
            found["eval_loss_before"] = outcome.held_loss(outcome.evals[0])
            found["eval_loss_after"] = outcome.held_loss(outcome.after())
        return found
