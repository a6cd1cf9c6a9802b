"""What all kinds that train share: their parameters, and what these say about their results.

A kind derives from ``Training``, adds fields of its own (or gives one of these another default or description by
writing it again), and in ``run`` hands what it trains to ``kit.train.run``, whose docstring shows how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Keyless, Measure, Reproducibility, Role, Stage


class Training(Stage):
    """Gradient steps over a data set, seeded, with a plain loop that goes on where an attempt was ended.

    Exactly one of ``steps`` and ``epochs`` is given. The bytes are the same on every run on a CPU; a GPU adds in an
    order of its own, so there they depend on the device.
    """

    reproducibility: ClassVar[Reproducibility] = "seeded"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "data": Role(accepts=("dataset",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    resumes: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("train_loss_first", "nats/token"),
        Measure("train_loss_last", "nats/token"),
        Measure("trainable_parameters", "parameters"),
        Measure("steps", "1"),
        Measure("tokens", "tokens"),
        Measure("tokens_per_second", "tokens/s"),
        Measure("train_seconds", "s"),
        Measure("eval_loss_before", "nats/token", "with held-out documents"),
        Measure("eval_loss_after", "nats/token", "with held-out documents"),
        Measure("eval_loss_change", "nats/token", "with held-out documents"),
        Measure("perplexity_before", "1", "with held-out documents"),
        Measure("perplexity_after", "1", "with held-out documents"),
        Measure("padding", "1", "unless pairs are learned"),
        Measure("device_peak_bytes", "B", "on a GPU"),
    )

    steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Optimizer steps")
    epochs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Passes over the training documents")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=4, description="Documents read before gradients are summed")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Batches whose gradients one step sums: it equals one batch of as many documents"
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        default=512, description="Tokens of the longest document, and of one forward pass over several"
    )
    too_long: Literal["truncate", "refuse"] = Field(
        default="truncate", description="What becomes of a document that is longer than max_length"
    )
    packing: bool = Field(
        default=True,
        description="Lay documents end to end in one row, if the model is measured to keep them apart; else pad",
    )
    completion_only: bool = Field(default=True, description="Learn the completion only, not the prompt")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=2e-4, description="Peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up"
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="AdamW; adamw_8bit keeps its two moments in 8 bits (bitsandbytes)"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Weight decay of AdamW")
    gradient_clip: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Largest norm of the gradient")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass instead of keeping them"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="In which the model computes; what is trained is always float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where it computes; auto prefers a GPU")
    eval_documents: Annotated[int, Field(ge=0)] = Field(
        default=32, description="Held-out documents scored before and after"
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps between further scorings; 0: none")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Scorings in a row without a lower held-out loss after which training stops early"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="Which weights are the result: of the scoring with the lowest loss, or the last"
    )
    checkpoint_every: Annotated[float, Field(ge=0), Keyless()] = Field(
        default=60.0,
        description="Seconds between checkpoints from which an ended run goes on; 0: after every step. In no key",
    )

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of 'steps' and 'epochs'")
        if self.patience is not None and not (self.eval_every and self.eval_documents):
            raise ValueError("patience counts scorings: it needs 'eval_every' and 'eval_documents' above 0")
        return self

    def reproduces(self) -> Reproducibility:
        """Equal bytes are promised on a CPU only."""
        return "seeded" if self.device == "cpu" else "device_dependent"

    def device_wanted(self) -> Device:
        """Where it computes."""
        return self.device

    def tools_used(self) -> tuple[str, ...]:
        """With bitsandbytes where it keeps the optimizer's moments."""
        return (*self.tools, "bitsandbytes") if self.optimizer == "adamw_8bit" else self.tools
