"""``full``: training of a model's own weights, all or some of them, with or without a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Given, Least, Measure, Progress, Role
from ingot.stages._distill import MEASURES, TEACHER, Distill, least_memory, misfits
from ingot.stages._shape import SIZES, TRAINED_BYTES
from ingot.stages._training import Training

if TYPE_CHECKING:
    import torch


class Full(Training):
    """Full fine-tuning: the weights of an existing model go on learning, and a whole model is written.

    ``train`` names what learns; the rest stays bit for bit as it is. Weights are float32 while they learn. With a
    ``teacher``, which must have the same vocabulary, they learn the teacher's distribution too (``distill``).
    """

    kind: ClassVar[str] = "full"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {**Training.inputs, "teacher": TEACHER}
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("parameters", "parameters"),
        Measure("weight_bytes", "B"),
        *Training.measures,
        *MEASURES,
    )

    learning_rate: Annotated[float, Field(gt=0)] = Field(default=2e-5, description="Peak learning rate")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="In which it computes; its weights are float32 while they are trained"
    )
    train: Literal["all"] | tuple[str, ...] = Field(
        default="all",
        description="What learns: all, or words of the names of modules, such as self_attn, layers.0 or mlp.*_proj",
    )
    weights: Literal["bfloat16", "float16", "float32"] | None = Field(
        default=None, description="The dtype of the weights that are written; by default each keeps its own"
    )
    distill: Distill = Field(default=Distill(), description="How it learns from the teacher")

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if isinstance(self.train, tuple) and not (self.train and all(name.strip(".") for name in self.train)):
            raise ValueError("train is empty or has an empty name: name what learns, or use all")
        return self

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The weights, with gradients and moments where all learn, and a teacher beside them; see ``Stage``."""
        del device
        each = TRAINED_BYTES[self.optimizer] if self.train == "all" else SIZES["float32"]
        return least_memory(self.distill, inputs, each)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """As many weights as the model has, none with fewer than 16 bits; see ``Stage``."""
        return inputs.get("model", Least()).stored(8 * SIZES[self.weights or "bfloat16"])

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """See ``Stage``."""
        return misfits(self.distill, roles)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Train.

        RefusedInput: E-FULL-MODULES, E-QUANTIZED, E-MODEL-ARCH, E-DISTILL-VOCABULARY, E-CONTEXT, E-DATASET-*, E-DEVICE,
        and what a model folder may be refused for. StageFailed: E-TRAIN-DIVERGED.
        """
        from ingot.kit.train import run, whole
        from ingot.kit.write_model import sizes, write_weights

        with run.prepared(self, given) as device:
            progress.phase("load")
            folder = given.one("model")
            model = whole.load(folder, self.train, device)
            trained = whole.train(self, given, whole.Trainee(model), folder, progress)
            progress.phase("write")
            sink = write_weights(
                model, out, dtype=self.weights or self._kept(folder), threads=given.threads, watch=progress
            )
            self._write_side_files(folder, out)
            trained.outcome.write(out)
            notes = run.notes(self, device, trained.outcome)
            return Done({**sizes(sink), **trained.metrics}, tuple(sink.files), sink.tensors, notes=notes)

    def _kept(self, folder: Path) -> Mapping[str, torch.dtype]:
        """The dtype of each weight of the folder."""
        from ingot.kit import hf
        from ingot.kit.stream.vocabulary import TORCH_DTYPES

        return {entry.name: TORCH_DTYPES[entry.dtype] for _, entry in hf.entries(folder)}

    def _write_side_files(self, folder: Path, out: Path) -> None:
        from ingot.kit import hf, layers

        config = hf.read_config(folder)
        if self.weights is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = self.weights
        layers.copy_model_files(folder, out, config=config)
