"""``student``: a Llama-shaped model from scratch, trained on texts or distilled from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Given, Least, Measure, Metric, Progress, Role
from ingot.stages._distill import MEASURES, TEACHER, Distill, least_memory, misfits
from ingot.stages._shape import PRESETS, SIZES, TRAINED_BYTES, Shape
from ingot.stages._training import Training

_Preset = Literal["0.3m", "0.6m", "1m", "3m", "15m", "60m", "135m", "360m", "1b", "3b", "4b", "8b", "9b"]


def _preset(name: str, otherwise: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """The default of a size: that of the preset, else what the sizes before it give."""

    def default(found: dict[str, Any]) -> Any:
        preset = PRESETS.get(found.get("preset") or "")
        return otherwise(found) if preset is None else getattr(preset.shape, name)

    return default


def _missing(_found: dict[str, Any]) -> int:
    return 0


def _feed_forward(found: dict[str, Any]) -> int:
    """Eight thirds of the width, which makes SwiGLU as large as a plain layer of four times it, in steps of 32."""
    return int(-(-found.get("width", 0) * 8 // 96) * 32)


class Student(Training):
    """A model from scratch: grouped-query attention, RMSNorm, SwiGLU and rotary positions, as transformers' Llama.

    Its sizes are those of a ``preset``, any of which may be written over, or ``layers``, ``width`` and ``heads`` and
    what follows from them. The vocabulary is that of the role ``tokenizer``. With a ``teacher``, which must have the
    same vocabulary, it learns the teacher's distribution beside the text's tokens (``distill``). Initial weights
    follow from the seed.
    """

    kind: ClassVar[str] = "student"
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "data": Role(accepts=("dataset",)),
        "tokenizer": Role(accepts=("tokenizer", "hf")),
        "teacher": TEACHER,
    }
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("parameters", "parameters"),
        Measure("vocabulary", "tokens"),
        Measure("weight_bytes", "B"),
        *Training.measures,
        *MEASURES,
    )

    completion_only: bool = Field(default=False, description="Learn the completion only, not the prompt")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="Peak learning rate")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        default=16, description="Documents read before gradients are summed"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="float32", description="In which it computes; its weights are float32 while they are trained"
    )
    preset: _Preset | None = Field(default=None, description="Sizes under a name, by the parameters that they give")
    layers: int = Field(
        default_factory=_preset("layers", _missing), ge=1, le=1024, description="Blocks of attention and feed-forward"
    )
    width: int = Field(
        default_factory=_preset("width", _missing), ge=8, le=65_536, description="Numbers that stand for a token"
    )
    heads: int = Field(
        default_factory=_preset("heads", _missing),
        ge=1,
        le=1024,
        description="Heads of attention; width divides by them",
    )
    kv_heads: int = Field(
        default_factory=_preset("kv_heads", lambda found: found.get("heads", 0)),
        ge=1, le=1024, description="Heads of keys and values, each for an equal group of heads; as many as heads",
    )  # fmt: skip
    feed_forward: int = Field(
        default_factory=_preset("feed_forward", _feed_forward),
        ge=1, le=1 << 20, description="Numbers between the feed-forward matrices; 8/3 of the width in steps of 32",
    )  # fmt: skip
    context: int = Field(
        default_factory=_preset("context", lambda _found: 512),
        ge=8, le=1 << 20, description="The most tokens that it is made to read; 512",
    )  # fmt: skip
    rope_theta: float = Field(
        default_factory=_preset("rope_theta", lambda _found: 10_000.0),
        gt=1, description="Base of the rotary positions' wavelengths; 10000",
    )  # fmt: skip
    tied: bool = Field(
        default_factory=_preset("tied", lambda _found: True),
        description="One matrix for the input and the output embedding; yes",
    )
    vocabulary: int | None = Field(
        default=None, ge=256, le=1 << 20, description="Rows of the embedding; by default one for each token"
    )
    deviation: float = Field(
        default=0.02, gt=0, le=1, description="Standard deviation of the initial weights; norms begin at 1"
    )
    weights: Literal["bfloat16", "float16", "float32"] = Field(
        default="float32", description="The dtype of the weights that are written"
    )
    distill: Distill = Field(default=Distill(), description="How it learns from the teacher")

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        missing = [name for name in ("layers", "width", "heads") if not getattr(self, name)]
        if missing:
            raise ValueError(f"needs 'preset', or 'layers', 'width' and 'heads' (missing: {', '.join(missing)})")
        faults = [*self.shape.faults()]
        if self.max_length > self.context:
            faults.append(f"max_length {self.max_length} is more than the context of {self.context} tokens")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return Shape(
            self.layers, self.width, self.heads, self.kv_heads,
            self.feed_forward, self.context, self.rope_theta, tied=self.tied,
        )  # fmt: skip

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The weights with gradients and moments, and a teacher beside them; see ``Stage``."""
        del device
        return self._least_weights() * TRAINED_BYTES[self.optimizer] + least_memory(self.distill, inputs, 0)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """Its weights and its shape; see ``Stage``."""
        del inputs
        weights = self._least_weights()
        return Least(weights * SIZES[self.weights], weights, self.shape.cache, self.context)

    def _least_weights(self) -> int:
        """All but the embedding where only the tokenizer, which may not be there yet, knows how many rows it has."""
        return self.shape.parameters(self.vocabulary or 0)

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """See ``Stage``."""
        return misfits(self.distill, roles)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Build and train.

        RefusedInput: E-STUDENT-VOCABULARY, E-DISTILL-VOCABULARY, E-CONTEXT, E-DATASET-*, E-DEVICE. StageFailed:
        E-TRAIN-DIVERGED.
        """
        from ingot.kit import hf, student
        from ingot.kit.train import run, whole
        from ingot.kit.write_model import copy_tokenizer, sizes, write_weights

        with run.prepared(self, given) as device:
            progress.phase("load")
            folder = given.one("tokenizer")
            tokenizer = hf.load_lone_tokenizer(folder)
            rows = student.rows_for(tokenizer, self.vocabulary)
            fields, seed = self.shape.config(), given.seed or 0
            model = student.new_model(fields, rows, tokenizer, deviation=self.deviation, seed=seed)
            trained = whole.train(self, given, whole.Trainee(model.to(device)), folder, progress)
            progress.phase("write")
            student.write_configs(model, out, dtype=self.weights)
            copy_tokenizer(folder, out, context=self.context)
            sink = write_weights(model, out, dtype=self.weights, threads=given.threads, watch=progress)
            trained.outcome.write(out)
            found = {**sizes(sink), "vocabulary": Metric(rows, "tokens", "rows of the embedding"), **trained.metrics}
            notes = run.notes(self, device, trained.outcome)
            return Done(found, tuple(sink.files), sink.tensors, notes=notes)
