"""When a training has gone wrong: it stops with what was seen and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.errors import StageFailed

#: Steps whose mean loss is compared with that of the first.
_WINDOW = 8


@dataclass(frozen=True)
class Guards:
    """The bounds of a run. ``chance``: the loss of a uniform guess, None where there is none; ``peak``: of the rate."""

    chance: float | None
    peak: float
    what: str = "the model"

    def check(self, step: int, losses: Sequence[float], norm: float) -> None:
        """Look at the losses up to ``step``, before its weights are written.

        StageFailed: E-TRAIN-START when the untrained model gives no number; E-TRAIN-DIVERGED when loss or gradient is
        not finite later, when a loss is more than twice the first and that of a uniform guess, or when eight steps in a
        row are far worse than the untrained first.
        """
        loss = losses[-1]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._no_number(step, loss, norm)
        if self.chance is not None and loss > 2 * max(self.chance, losses[0]):
            guess = f"a uniform guess costs {self.chance:.4g}"
            raise self.diverged(f"step {step}: loss {loss:.4g}, at the first step {losses[0]:.4g}; {guess}")
        recent = losses[-_WINDOW:]
        if len(losses) > _WINDOW and far_worse(losses[0], sum(recent) / len(recent)):
            raise self.diverged(f"loss {losses[0]:.4g} at the first step, {recent[-1]:.4g} at step {step}")

    def _no_number(self, step: int, loss: float, norm: float) -> StageFailed:
        fact = f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}"
        if step > 1:
            return self.diverged(fact)
        return StageFailed(
            "E-TRAIN-START",
            f"{self.what} gives no finite loss or gradient before anything is learned",
            facts=[fact],
            hint="look whether its weights are whole ('doit show' names them), or compute in 'dtype: float32'",
        )

    def check_held(self, before: float, after: float) -> None:
        """The held-out loss before and after: StageFailed (E-TRAIN-DIVERGED) when it grew far or is no number."""
        if not math.isfinite(after) or far_worse(before, after):
            raise self.diverged(f"held-out loss {before:.4g} before, {after:.4g} after training")

    def diverged(self, fact: str) -> StageFailed:
        """E-TRAIN-DIVERGED with what was seen."""
        return StageFailed(
            "E-TRAIN-DIVERGED",
            f"training diverged: it makes {self.what} worse, not better",
            facts=[fact],
            hint=f"lower learning_rate (it is {self.peak:g}) or raise warmup",
        )


def far_worse(before: float, after: float) -> bool:
    """Whether a loss has grown beyond what a few unlike batches explain."""
    return after > 1.5 * before + 0.5
