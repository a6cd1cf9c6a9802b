"""The training loop: plain, seeded, the same on every run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingot.errors import StageFailed
from ingot.kit.train.documents import Document, packs_of
from ingot.kit.train.next_token import nll
from ingot.kit.train.schedule import Schedule

#: Steps whose mean loss is compared with that of the first.
_WINDOW = 8


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw: mean loss in nats per scored token, gradient norm before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    scored_tokens: int
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """As it stands in training.json."""
        return dict(vars(self))


@dataclass(frozen=True)
class Loop:
    """The settings of a run; ``limit`` is the number of tokens in one forward pass."""

    schedule: Schedule
    weight_decay: float
    clip: float
    limit: int
    vocabulary: int

    def run(self, model: Any, source: Iterable[list[Document]]) -> Iterator[Step]:
        """AdamW over the trainable parameters, one step a batch; yields what each step saw.

        The loss of a batch is the mean over all its scored tokens, however it is split into passes.
        StageFailed (E-TRAIN-DIVERGED) when loss or gradient is not finite, when a loss is more than twice that of
        a uniform guess over the vocabulary, or when eight steps in a row are far worse than the untrained first.
        """
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.schedule.peak, weight_decay=self.weight_decay)
        model.train()
        losses: list[float] = []
        for index, batch in enumerate(source):
            rate = self.schedule.rate(index)
            for group in optimizer.param_groups:
                group["lr"] = rate
            scored = sum(doc.scored for doc in batch)
            loss = self._backward(model, batch, scored)
            norm = float(torch.nn.utils.clip_grad_norm_(weights, self.clip))
            step = Step(index + 1, loss, rate, norm, scored, sum(len(doc.ids) for doc in batch))
            losses.append(loss)
            self._check(step, losses)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield step

    def _backward(self, model: Any, batch: Sequence[Document], scored: int) -> float:
        total = 0.0
        for pack in packs_of(batch, self.limit):
            loss = nll(model, pack).sum() / scored
            loss.backward()
            total += float(loss.detach())
        return total

    def _check(self, step: Step, losses: Sequence[float]) -> None:
        guess = math.log(self.vocabulary)
        recent = losses[-_WINDOW:]
        if not (math.isfinite(step.loss) and math.isfinite(step.gradient_norm)):
            raise self.diverged(f"step {step.step}: loss {step.loss:.4g}, gradient norm {step.gradient_norm:.4g}")
        if step.loss > 2 * guess:
            raise self.diverged(f"step {step.step}: loss {step.loss:.4g}; a uniform guess costs {guess:.4g}")
        if len(losses) > _WINDOW and far_worse(losses[0], sum(recent) / len(recent)):
            raise self.diverged(f"loss {losses[0]:.4g} at the first step, {recent[-1]:.4g} at step {step.step}")

    def diverged(self, fact: str) -> StageFailed:
        """E-TRAIN-DIVERGED with what was seen."""
        return StageFailed(
            "E-TRAIN-DIVERGED",
            "training diverged: the adapter makes the model worse, not better",
            facts=[fact],
            hint=f"lower learning_rate (it is {self.schedule.peak:g}) or raise warmup",
        )


def far_worse(before: float, after: float) -> bool:
    """Whether a loss in nats per token has grown beyond what a few unlike batches explain."""
    return after > 1.5 * before + 0.5
