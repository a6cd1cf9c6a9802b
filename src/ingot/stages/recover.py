"""``recover``: short training of a pruned model that keeps its zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Given, Least, Measure, Progress, Role
from ingot.stages._distill import MEASURES, TEACHER, Distill, least_memory, misfits
from ingot.stages._shape import SIZES, TRAINED_BYTES
from ingot.stages._training import Training


class Recover(Training):
    """A pruned model learns again, and every weight that is zero stays zero.

    ``masked`` trains the weights themselves: no gradient reaches a zero, so the optimizer's moments stay zero there
    too, and zeros are set again after every step. ``lora`` trains a low-rank change that is multiplied by the mask
    in every forward pass and merged under it, so what was trained is what is written. Weights are rounded to the type
    in which they are stored before they are measured again. While writing, the zeros of each module are compared with
    those of the input; ``recover.json`` lists them. An N:M pattern, listed by ``prune`` or found, is counted again.
    A ``teacher``, say the model before it was pruned, may teach its distribution (``distill``).
    """

    kind: ClassVar[str] = "recover"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {**Training.inputs, "teacher": TEACHER}
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    measures: ClassVar[tuple[Measure, ...]] = (
        *Training.measures,
        *MEASURES,
        Measure("sparsity_before", "1"),
        Measure("sparsity", "1"),
        Measure("sparsity_lowest", "1"),
        Measure("sparsity_highest", "1"),
        Measure("GROUP_sparsity", "1", "for each group of modules that have zeros"),
        Measure("zeros", "parameters"),
        Measure("pruned_parameters", "parameters"),
        Measure("pruned_layers", "1"),
        Measure("crowded_blocks", "1", "where a module's zeros have a pattern; never above 0"),
    )

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

    distill: Distill = Field(default=Distill(), description="How it learns from the teacher")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "lora" and self.train != "pruned":
            raise ValueError("'method: lora' changes modules that have zeros; 'train: all' is for 'method: masked'")
        return self

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The weights, with gradients and moments where all learn, and a teacher beside them; see ``Stage``."""
        del device
        each = TRAINED_BYTES[self.optimizer] if self.train == "all" else SIZES["float32"]
        return least_memory(self.distill, inputs, each)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """As many weights as the model has; see ``Stage``."""
        return inputs.get("model", Least()).stored(16)

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """See ``Stage``."""
        return misfits(self.distill, roles)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Recover; see the class.

        RefusedInput: E-RECOVER-DENSE, E-QUANTIZED, E-DATASET-*, E-CONTEXT, E-DEVICE. StageFailed: E-RECOVER-MASK,
        E-TRAIN-DIVERGED.
        """
        from ingot.kit.prune import recovery as recoveries
        from ingot.kit.train import run, whole

        with run.prepared(self, given) as device:
            progress.phase("load")
            lora = (self.rank, self.alpha) if self.method == "lora" else None
            folder = given.one("model")
            recovery = recoveries.prepare(folder, device, lora=lora, everything=self.train == "all")
            trainee = whole.Trainee(recovery.model, recovery.put_back, recovery.finish)
            trained = whole.train(self, given, trainee, folder, progress)
            progress.phase("write")
            done = recoveries.write_recovered(recovery, given, out, progress)
            trained.outcome.write(out)
            metrics = {**trained.metrics, **done.metrics}
            return Done(metrics, done.files, done.tensors, notes=run.notes(self, device, trained.outcome))
