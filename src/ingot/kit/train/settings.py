"""The parameters of a training, as the frame reads them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Settings:
    """The fields of ``stages/_training.py`` that steer the loop; see there.

    A kind that trains in several rounds replaces some for each (``dataclasses.replace(settings, steps=50)``).
    """

    steps: int | None
    epochs: int | None
    batch_size: int
    accumulate: int
    max_length: int
    learning_rate: float
    schedule: str
    warmup: float
    optimizer: str
    weight_decay: float
    gradient_clip: float
    gradient_checkpointing: bool
    dtype: str
    eval_every: int
    patience: int | None
    keep: str
    checkpoint_every: float

    @classmethod
    def of(cls, stage: Any) -> Self:
        """Those of a ``Training`` stage."""
        return cls(**{field.name: getattr(stage, field.name) for field in fields(cls)})

    @property
    def items_a_step(self) -> int:
        """Items of one optimizer step."""
        return self.batch_size * self.accumulate
