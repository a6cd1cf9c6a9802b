"""Pruning in several levels: the parameters of the schedule, and of the training between its levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ingot.core.stage import Frozen, Keyless

if TYPE_CHECKING:
    from ingot.kit.prune.gradual import Between


class Learning(Frozen):
    """The training between two levels of a schedule: the pruned modules' weights learn, zeros are held."""

    steps: Annotated[int, Field(ge=1)] = Field(description="Optimizer steps after each level but the last")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=4, description="Documents of one step")
    max_length: Annotated[int, Field(ge=8)] = Field(default=512, description="Tokens of the longest document")
    completion_only: bool = Field(default=True, description="Learn the completion only, not the prompt")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-4, description="Peak learning rate of each level")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="Share of the steps in which it rises")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Weight decay of AdamW")
    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="In which the model computes")
    eval_documents: Annotated[int, Field(ge=0)] = Field(
        default=32, description="Held-out documents scored before and after"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Orders the documents")
    checkpoint_every: Annotated[float, Field(ge=0), Keyless()] = Field(
        default=60.0, description="Seconds between checkpoints from which an ended run goes on. In no key"
    )


class Schedule(Frozen):
    """Pruning in several levels, with training between them."""

    steps: Annotated[int, Field(ge=2, le=100)] = Field(description="Levels in which the share is reached")
    shape: Literal["cubic", "linear"] = Field(
        default="cubic", description="The share after level t of n: s·(1 − (1 − t/n)³), or s·t/n"
    )
    recover: Learning = Field(description="The training between two levels")


def between(schedule: Schedule, device: str) -> Between:
    """What happens between two levels, as the training helpers take it."""
    from ingot.kit.prune.gradual import Between
    from ingot.kit.train.settings import Settings

    wanted = schedule.recover
    settings = Settings(
        steps=wanted.steps, epochs=None, batch_size=wanted.batch_size, accumulate=1, max_length=wanted.max_length,
        learning_rate=wanted.learning_rate, schedule="cosine", warmup=wanted.warmup, optimizer="adamw",
        weight_decay=wanted.weight_decay, gradient_clip=1.0, gradient_checkpointing=False, dtype=wanted.dtype,
        eval_every=0, patience=None, keep="last", checkpoint_every=wanted.checkpoint_every,
    )  # fmt: skip
    return Between(
        levels=schedule.steps, shape=schedule.shape, settings=settings, seed=wanted.seed, device=device,
        max_length=wanted.max_length, too_long="truncate", completion_only=wanted.completion_only,
        eval_documents=wanted.eval_documents, packing=True,
    )  # fmt: skip
