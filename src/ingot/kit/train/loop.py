"""One optimizer step, and a scoring of held-out items: plain, seeded, the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ingot.kit.train.layout import Layout
from ingot.kit.train.objective import Item, Objective

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw: mean loss by scored part, gradient norm before clipping, tokens it read."""

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
class Learner(Generic[ItemT]):
    """A model, what gives its losses, and how items are laid out; ``autocast``: fp32 weights compute in bfloat16."""

    model: Any
    objective: Objective[ItemT]
    layout: Layout
    autocast: bool = False

    def losses(self, items: Sequence[ItemT]) -> torch.Tensor:
        """The losses of one pass."""
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext():
            return self.objective.losses(self.model, items)

    def backward(self, items: Sequence[ItemT], batch_size: int) -> float:
        """Add the gradient of the mean loss over all scored parts of ``items``, however they are split into passes.

        Passes do not cross ``batch_size`` items. Returns the mean loss. The device is waited for once, at the end.
        """
        scored = sum(item.scored for item in items)
        total: torch.Tensor | None = None
        for batch in chunks(items, batch_size):
            for taken in self.layout.passes(batch):
                loss = self.losses(taken).sum() / scored
                loss.backward()
                total = loss.detach() if total is None else total + loss.detach()
        return float(total) if total is not None else 0.0

    def cost(self, items: Sequence[ItemT], batch_size: int) -> int:
        """Tokens that ``backward`` reads, with those that only fill rows up."""
        batches = chunks(items, batch_size)
        return sum(self.layout.cost(taken) for batch in batches for taken in self.layout.passes(batch))

    def score(self, items: Sequence[ItemT], report: Callable[[int], None]) -> list[float]:
        """The summed losses of each item, in order, gradients off; ``report`` gets the number done."""
        training = self.model.training
        self.model.eval()
        sums: list[float] = []
        for taken in self.layout.passes(items):
            with torch.no_grad():
                parts = self.losses(taken).double().split([item.scored for item in taken])
            sums.extend(torch.stack([part.sum() for part in parts]).tolist())
            report(len(sums))
        self.model.train(training)
        return sums


def chunks(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Consecutive runs of at most ``size``."""
    for at in range(0, len(items), size):
        yield items[at : at + size]
