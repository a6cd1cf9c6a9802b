"""The learning rate by step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The learning rate by step: linear warm-up, then constant, linear or cosine decay to zero."""

    shape: str
    peak: float
    steps: int
    warmup: float

    def rate(self, step: int) -> float:
        """The rate of step ``step`` (from 0). The last step still learns: decay reaches zero one step later."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.peak * (step + 1) / (rising + 1)
        done = (step - rising) / max(1, self.steps - rising)
        if self.shape == "linear":
            return self.peak * (1 - done)
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak
