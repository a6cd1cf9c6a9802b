"""``prune``: set the least important weights of linear layers to zero, or leave out whole layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ingot.core.stage import (
    Device,
    Done,
    Format,
    Given,
    Least,
    Measure,
    Progress,
    Reproducibility,
    Role,
    Stage,
)
from ingot.errors import RefusedInput
from ingot.stages._gradual import Schedule, between

if TYPE_CHECKING:
    from ingot.kit.prune.goals import Goal, Prunable
    from ingot.kit.stream.vocabulary import Weights

Share = Annotated[float, Field(gt=0, lt=1)]
#: In a mapping 0 leaves modules alone that a wider name would take.
MaybeShare = Annotated[float, Field(ge=0, lt=1)]


class Prune(Stage):
    """Zeroes a share of the weights (``sparsity``), leaves N of every M (``pattern``), or drops layers (``depth``).

    ``magnitude`` scores a weight by its size and takes the share from each tensor; it streams, and holds no model.
    ``wanda`` multiplies by the norm of the input feature over the calibration documents and takes the share from
    each output row; it runs the model once, in memory. ``sparsegpt`` (llm-compressor) goes layer by layer and lets the
    weights that stay make up for those that go. ``sparsity`` and ``pattern`` are one value for all ``targets``, or
    map names to values. The result keeps the model's format: zeros are stored. ``depth`` leaves out the layers that
    change the least of what flows through them. ``prune.json`` lists the zeros counted while writing, module by
    module, or the influence of each layer.
    """

    kind: ClassVar[str] = "prune"
    revision: ClassVar[int] = 3
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
        "data": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "llmcompressor", "compressed-tensors")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    streams: ClassVar[tuple[str, ...]] = ("model",)
    resumes: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("sparsity", "1", "all but depth"),
        Measure("sparsity_lowest", "1", "all but depth"),
        Measure("sparsity_highest", "1", "all but depth"),
        Measure("GROUP_sparsity", "1", "for each group of modules that lost weights: attention, feed_forward, …"),
        Measure("zeros", "parameters", "all but depth"),
        Measure("pruned_parameters", "parameters", "all but depth"),
        Measure("pruned_layers", "1", "all but depth"),
        Measure("crowded_blocks", "1", "with a pattern; never above 0"),
        Measure("levels", "1", "with a schedule"),
        Measure("recovery_steps", "1", "with a schedule"),
        Measure("layers", "1", "depth"),
        Measure("layers_dropped", "1", "depth"),
        Measure("parameters", "parameters", "depth"),
        Measure("parameters_before", "parameters", "depth"),
        Measure("influence_dropped", "1", "depth"),
        Measure("influence_kept", "1", "depth"),
    )

    method: Literal["magnitude", "wanda", "sparsegpt", "depth"] = Field(
        default="magnitude", description="How it is chosen what goes"
    )
    sparsity: Share | Mapping[str, MaybeShare] | None = Field(
        default=None,
        description="Share of the weights that become zero; or shares by name: a group (attention, feed_forward,"
        " embeddings, all-linear), words of a module's name (mlp, layers.0), or a pattern with *",
    )
    pattern: str | Mapping[str, str] | None = Field(
        default=None, description="N:M, such as 2:4: at most N of every M in a row stay; or by name, as sparsity"
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Which modules a single value is for; all-linear leaves out lm_head"
    )
    drop_layers: Annotated[int, Field(ge=1)] | Share | None = Field(
        default=None, description="How many layers go, or which share of them (depth)"
    )
    block_size: Annotated[int, Field(ge=1)] = Field(
        default=128, description="Columns that are decided on at once (sparsegpt)"
    )
    dampening: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01, description="What is added to the Hessian's diagonal, over its mean (sparsegpt)"
    )
    schedule: Schedule | None = Field(
        default=None, description="Reach the sparsity in levels, training on the role data between them"
    )
    allow_nonfinite: bool = Field(default=False, description="Take weights that are NaN or infinite as they are")
    documents: Annotated[int, Field(ge=1)] = Field(default=32, description="Calibration documents (all but magnitude)")
    max_length: Annotated[int, Field(ge=8)] = Field(default=512, description="Tokens at which one is cut")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it computes (sparsegpt and a schedule; else the CPU)"
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | Mapping[str, str] | None) -> str | Mapping[str, str] | None:
        for pattern in value.values() if isinstance(value, Mapping) else () if value is None else (value,):
            _n_of_m(pattern)
        return value

    @model_validator(mode="after")
    def _check(self) -> Prune:
        many = [value for value in (self.sparsity, self.pattern) if isinstance(value, Mapping)]
        if self.method == "depth":
            if self.drop_layers is None or self.sparsity is not None or self.pattern is not None or self.schedule:
                raise ValueError("'method: depth' needs 'drop_layers', and no 'sparsity', 'pattern' or 'schedule'")
            return self
        if self.drop_layers is not None:
            raise ValueError("'drop_layers' is for 'method: depth'")
        if (self.sparsity is None) == (self.pattern is None) and len(many) != 2:
            raise ValueError("needs exactly one of 'sparsity' and 'pattern', or both as mappings of names")
        if many and self.targets != "all-linear":
            raise ValueError("'targets' is for a single 'sparsity' or 'pattern'; a mapping names its modules itself")
        if self.schedule is not None and self.pattern is not None:
            raise ValueError("a schedule is for 'sparsity': a pattern has no levels between none and all")
        if any(not value for value in many):
            raise ValueError("a mapping of names must name something")
        if len(many) == 2 and set(many[0]) & set(many[1]):
            raise ValueError(f"{min(set(many[0]) & set(many[1]))!r} stands under 'sparsity' and under 'pattern'")
        return self

    def tools_used(self) -> tuple[str, ...]:
        """Magnitude runs no model and reads no text; only sparsegpt is the library's."""
        if self.method == "sparsegpt":
            return self.tools
        return ("torch",) if self.weightwise() else ("torch", "transformers", "tokenizers")

    def needs_used(self) -> tuple[str, ...]:
        """Magnitude takes only the model's structure from transformers."""
        return ("safetensors", "numpy", "transformers") if self.weightwise() else self.needs

    def reproduces(self) -> Reproducibility:
        """Another device gives a layer's statistics, and a training, other last bits."""
        anywhere = self.method == "sparsegpt" or self.schedule is not None
        return "device_dependent" if anywhere and self.device != "cpu" else "deterministic"

    def goes_on(self) -> bool:
        """Only a training is worth keeping."""
        return self.schedule is not None

    def device_wanted(self) -> Device | None:
        """The others compute on the CPU."""
        return self.device if self.method == "sparsegpt" or self.schedule is not None else None

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """All but magnitude look at what flows through the model."""
        if self.method != "magnitude" and "calibration" not in roles:
            yield (
                "calibration",
                f"the role 'calibration' is not filled, and 'method: {self.method}' needs its documents",
            )
        if (self.schedule is not None) != ("data" in roles):
            yield "data", "the role 'data' is what a 'schedule' trains on: one is given without the other"

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Of whole layers other things are counted than of single weights."""
        told = {name: when for name, _, when in self.measures if (when == "depth") == (self.method == "depth")}
        absent = {"with a pattern; never above 0"} if self.pattern is None else set()
        absent |= {"with a schedule"} if self.schedule is None else set()
        return tuple(name for name in super().measured(roles) if name in told and told[name] not in absent)

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """What looks at activations holds the model, in float32 where it learns; see ``Stage``."""
        del device  # sparsegpt keeps it in the memory of the machine, a layer at a time on a GPU
        weights = inputs.get("model", Least()).stored(16).weights
        return 0 if self.weightwise() else weights * (4 if self.schedule else 2)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """As many weights as the model has: zeros are stored. Of dropped layers it is not known how large they are."""
        return Least() if self.method == "depth" else inputs.get("model", Least()).stored(16)

    def weightwise(self) -> bool:
        """The others must run the whole model first."""
        return self.method == "magnitude" and self.schedule is None

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Prune; see the class. RefusedInput: E-PRUNE-*, E-QUANTIZED, E-NONFINITE, E-DATASET-EMPTY, E-DEVICE."""
        from ingot.kit.stream.inputs import build

        return build(self, given, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The pruned weights as a stream; the other files lie in the weights' folder."""
        import torch

        from ingot.kit import layers
        from ingot.kit.prune.dropping import drop_layers
        from ingot.kit.prune.zeroing import How, zero
        from ingot.kit.stream.inputs import open_input, written

        if self.method != "magnitude" and given.maybe("calibration") is None:
            raise RefusedInput(
                "E-PRUNE-CALIBRATION",
                f"{self.method} looks at what flows through the model, so it needs calibration documents",
                hint="add 'calibration: DATASET' under 'from:', or use 'method: magnitude'",
            )
        passed: dict[str, Callable[[], Done]] = {}
        if not self.weightwise():
            given, passed = written(given, "model", progress)
        weights = open_input(given, "model", progress, finite=not self.allow_nonfinite)
        layers.refuse_quantized(weights.folder, "prune")
        torch.set_num_threads(given.threads)
        weights.passed |= passed
        gradual = None if self.schedule is None else between(self.schedule, self.device)
        how = How(self.method, self.documents, self.max_length, self.device, self.block_size, self.dampening, gradual)
        if self.drop_layers is not None:
            return drop_layers(weights, given, progress, how, self.drop_layers)
        return zero(weights, given, progress, how, self.goals)

    def goals(self, prunable: Prunable) -> dict[str, Goal]:
        """What each module is to lose. RefusedInput: E-PRUNE-MODULES."""
        from ingot.kit.prune.goals import Goal, resolve

        wanted: dict[str, Goal] = {}
        names = (self.targets,) if isinstance(self.targets, str) else self.targets
        if self.sparsity is not None:
            by_name = self.sparsity if isinstance(self.sparsity, Mapping) else dict.fromkeys(names, self.sparsity)
            wanted |= {name: Goal(share=share) for name, share in by_name.items()}
        if self.pattern is not None:
            patterns = self.pattern if isinstance(self.pattern, Mapping) else dict.fromkeys(names, self.pattern)
            for name, pattern in patterns.items():
                keep, block = _n_of_m(pattern)
                wanted[name] = Goal(keep=keep, block=block)
        return resolve(prunable, wanted)


def _n_of_m(pattern: str) -> tuple[int, int]:
    """(N, M) of ``"N:M"``. ValueError unless 1 ≤ N < M ≤ 64."""
    found = re.fullmatch(r"([1-9][0-9]?):([1-9][0-9]?)", pattern)
    if not found:
        raise ValueError(f"{pattern!r} is not of the form N:M, such as 2:4")
    keep, block = int(found[1]), int(found[2])
    if not keep < block <= 64:
        raise ValueError(f"{pattern!r}: N must be less than M, and M at most 64")
    return keep, block
