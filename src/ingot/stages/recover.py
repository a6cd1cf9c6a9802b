"""``recover``: short training of a pruned model that keeps its zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Given, Least, Progress
from ingot.stages._shape import SIZES, TRAINED_BYTES
from ingot.stages._training import Training

if TYPE_CHECKING:
    import torch

    from ingot.kit.prune.recovery import Recovery
    from ingot.kit.train.outcome import Outcome


class Recover(Training):
    """A pruned model learns again, and every weight that is zero stays zero.

    ``masked`` trains the weights themselves: no gradient reaches a zero, so the optimizer's moments stay zero there
    too, and zeros are set again after every step. ``lora`` trains a low-rank change that is multiplied by the mask
    in every forward pass and merged under it, so what was trained is what is written. Weights are rounded to the type
    in which they are stored before they are measured again. While writing, the zeros of each module are compared with
    those of the input; ``recover.json`` lists them. An N:M pattern, listed by ``prune`` or found, is counted again.
    """

    kind: ClassVar[str] = "recover"
    produces: ClassVar[Format] = "hf"
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")

    method: Literal["masked", "lora"] = Field(
        default="masked", description="What is trained: the weights under the mask, or low-rank matrices"
    )
    train: Literal["pruned", "all"] = Field(
        default="pruned", description="Which weights learn: of modules that have zeros, or all (masked)"
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank r of the two matrices (lora)")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default_factory=lambda found: float(2 * found.get("rank", 16)),
        description="Scale: the change is alpha / rank times B·A; twice the rank unless given (lora)",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-4, description="Peak learning rate")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="In which the model computes; its weights are float32 until they are written"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "lora" and self.train != "pruned":
            raise ValueError("'method: lora' changes modules that have zeros; 'train: all' is for 'method: masked'")
        return self

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The weights in float32; with gradients and moments where all of them learn."""
        del device
        return inputs["model"].weights * (TRAINED_BYTES[self.optimizer] if self.train == "all" else SIZES["float32"])

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """As many weights as the model has, which has two bytes for each at the least."""
        return inputs["model"].stored(16)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Recover; see the class.

        RefusedInput: E-RECOVER-DENSE, E-QUANTIZED, E-DATASET-*, E-CONTEXT, E-DEVICE. StageFailed: E-RECOVER-MASK,
        E-TRAIN-DIVERGED.
        """
        from ingot.kit.prune import recovery as recoveries
        from ingot.kit.train import run

        with run.prepared(self, given) as device:
            progress.phase("load")
            lora = (self.rank, self.alpha) if self.method == "lora" else None
            recovery = recoveries.prepare(given.one("model"), device, lora=lora, everything=self.train == "all")
            outcome, learned = self._trained(recovery, given, progress)
            progress.phase("write")
            done = recoveries.write_recovered(recovery, learned, given, out, progress)
            outcome.write(out)
            found = outcome.metrics()
            metrics = {**found, **recoveries.perplexities(found), **done.metrics}
            return Done(metrics, done.files, done.tensors, notes=run.notes(self, device, outcome))

    def _trained(self, recovery: Recovery, given: Given, progress: Progress) -> tuple[Outcome, dict[str, torch.Tensor]]:
        """Train, round, and score once more what will be written."""
        from ingot.kit.train import next_token, run, text
        from ingot.kit.train.loop import Learner
        from ingot.kit.train.outcome import Scoring
        from ingot.kit.train.settings import Settings

        model = recovery.model
        texts = text.read(self, given, model)
        layout = next_token.layout_for(model, texts.sample, self.max_length, packing=self.packing)
        objective, narrow = next_token.NextToken(layout), self.dtype == "bfloat16"
        task = run.Task(
            model, objective, texts.train, layout, held=texts.held, chance=next_token.chance(model),
            after_step=recovery.put_back, autocast=narrow, what="the pruned model",
        )  # fmt: skip
        outcome = run.train(Settings.of(self), task, given, progress)
        learned = recovery.finish()
        if held := texts.held:
            progress.phase("evaluate what is written")
            learner = Learner(model, objective, layout, narrow)
            sums = learner.score(held, lambda done: progress(done, len(held), "documents"))
            outcome.evals.append(Scoring(outcome.kept, tuple(sums)))
        return outcome, learned
