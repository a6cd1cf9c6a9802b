"""``merge``: add one or several adapters to their base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Frozen, Given, Least, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.lora.combine import Change
    from ingot.kit.lora.files import Quantization, Record
    from ingot.kit.lora.merge import LoraMerge, Options
    from ingot.kit.stream.vocabulary import Counted, Weights


#: Architectures of transformers whose inner layers are Conv1D: stored in × out.
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


class Quantizer(Frozen):
    """The quantization of bitsandbytes that the base was under while the adapter was trained."""

    method: Literal["nf4", "fp4"] = Field(default="nf4", description="the four-bit kind (bnb_4bit_quant_type)")
    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        default=64, description="weights with one scale"
    )
    double_quant: bool = Field(description="whether scales were quantized too (bnb_4bit_use_double_quant)")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        default=None, description="of the weights when they were quantized; the base's own unless given"
    )


class Merge(Stage):
    """Writes ``W + s·B·A`` for every adapted weight and the other tensors as they are.

    Every kind of LoRA that is a sum is merged (docs/merge.md lists them, with bounds): rank and alpha patterns,
    rank-stabilised, DoRA, replaced modules, biases, embeddings, trained tokens; others are refused by name. The sum is
    computed in float32 and rounded once. Several adapters are added with a weight each. An adapter that was trained
    over a quantized base is added to what the quantization left of the weights. The base is streamed: memory holds some
    blocks of rows, never the model; the adapter is read where it lies.
    """

    kind: ClassVar[str] = "merge"
    revision: ClassVar[int] = 2
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "adapter": Role(accepts=("adapter",), either=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch",)
    streams: ClassVar[tuple[str, ...]] = ("model",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("merged_tensors", "1"),
        Measure("parameters", "parameters"),
        Measure("weight_bytes", "B"),
        Measure("relative_change", "1", "unless the adapted weights are all zero"),
        Measure("change_norm", "1", "as relative_change"),
        Measure("quantization_change", "1", "where the adapter was trained over a quantized base"),
    )

    dtype: Literal["base", "bfloat16", "float16", "float32"] = Field(
        default="base", description="Of the written floating-point weights; base keeps each tensor's own"
    )
    weights: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = Field(
        default=None, description="One factor an adapter, in the order of `from`; 1 for a single adapter unless given"
    )
    combine: Literal["linear", "factors"] = Field(
        default="linear",
        description="Several adapters: linear adds the changes (PEFT's cat); factors adds A and B for themselves "
        "(PEFT's linear)",
    )
    quantization: Quantizer | None = Field(
        default=None, description="What the base was quantized with in training, for an adapter that does not record it"
    )
    allow_other_base: bool = Field(
        default=False, description="Take an adapter that records another base than this one, if names and shapes fit"
    )
    allow_nonfinite: bool = Field(default=False, description="Write NaN and infinity instead of refusing them")
    shard_bytes: int = Field(default=5_000_000_000, gt=0, description="The most bytes of weights in one file")

    @model_validator(mode="after")
    def _check(self) -> Merge:
        if self.weights is not None and not self.weights:
            raise ValueError("weights is empty: give one number an adapter")
        return self

    def tools_used(self) -> tuple[str, ...]:
        """The quantizer's version counts where the spec names it; where the adapter does, its recorded identity."""
        return (*self.tools, "bitsandbytes") if self.quantization else self.tools

    def needs_used(self) -> tuple[str, ...]:
        """Which layers are quantized is asked of the architecture."""
        return (*self.needs, "transformers") if self.quantization else self.needs

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """``combine`` is about several adapters, each of which has a weight."""
        if "adapter" in roles and self.combine == "factors" and self.weights is None:
            yield "combine", "'combine: factors' needs 'weights', one number an adapter"

    def weightwise(self) -> bool:
        """Each tensor is merged for itself."""
        return True

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights of the base, which has two bytes for each at the least."""
        return inputs["model"].stored(32 if self.dtype == "float32" else 16)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Merge; see the class. RefusedInput: E-MERGE-*, E-NOT-ADAPTER, E-QUANTIZED, E-NONFINITE, E-DTYPE-RANGE."""
        from ingot.kit.stream import inputs

        progress.phase("merge")
        return inputs.build(self, given, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The merged weights, as they are made."""
        from ingot.kit import hf, layers
        from ingot.kit.lora.merge import LoraMerge
        from ingot.kit.stream import chain, inputs

        weights = inputs.open_input(given, "model", progress, finite=not self.allow_nonfinite)
        layers.refuse_quantized(weights.folder, "merge")
        merge = LoraMerge(*self._plan(given, weights.folder))
        merge.begin(chain.slots(weights))
        config = hf.read_config(weights.folder)
        if merge.apart:
            config = {**config, "tie_word_embeddings": False}
        if self.dtype != "base":
            config = {**config, "dtype": self.dtype}
            config.pop("torch_dtype", None)
        side = inputs.side_folder(given)
        layers.copy_model_files(weights.folder, side, config=config)
        passed = {role: self._watched(given, told) for role, told in weights.passed.items()}
        return replace(
            weights,
            folder=side,
            chain=[*weights.chain, merge],
            shard_bytes=self.shard_bytes,
            measure=lambda counted: _measured(merge, counted),
            passed=passed,
        )

    def _plan(self, given: Given, folder: Path) -> tuple[Change, Options]:
        """What is added to which weights, and how."""
        from ingot.kit import hf, layers
        from ingot.kit.lora import trained_on
        from ingot.kit.lora.combine import combine
        from ingot.kit.lora.merge import Options
        from ingot.kit.lora.nf4 import RoundTrip
        from ingot.kit.lora.read import read_adapter
        from ingot.kit.stream.vocabulary import DTYPE_NAMES

        adapters = [read_adapter(path) for path in given.many("adapter")]
        records = [adapter.record for adapter in adapters]
        for digest in given.digests.get("model", ()):
            self._check_base(records, digest)
        weights = self.weights if self.weights is not None else (1.0,) if len(adapters) == 1 else ()
        change = combine(adapters, weights, self.combine)
        over = trained_on.quantization(records, self._stated())
        conv1d = hf.read_config(folder).get("model_type") in _CONV1D
        return change, Options(
            dtype=None if self.dtype == "base" else DTYPE_NAMES[hf.torch_dtype(self.dtype)],
            allow_nonfinite=self.allow_nonfinite,
            conv1d=conv1d,
            trip=None if over is None else RoundTrip(over),
            quantized=frozenset() if over is None else layers.four_bit_weights(folder),
        )

    def _check_base(self, records: Sequence[Record], digest: str) -> None:
        from ingot.kit.lora.trained_on import refuse_other_base

        if not self.allow_other_base:
            refuse_other_base(records, digest)

    def _watched(self, given: Given, told: Callable[[], Done]) -> Callable[[], Done]:
        """As ``told``, once the digest of a base that nobody has seen before is the one the adapters record."""

        def checked() -> Done:
            from ingot.core.digest import tree_digest
            from ingot.kit.lora.files import read_record

            done = told()
            self._check_base([read_record(path) for path in given.many("adapter")], tree_digest(done.files))
            return done

        return checked

    def _stated(self) -> Quantization | None:
        from ingot.kit.lora.files import Quantization

        how = self.quantization
        return None if how is None else Quantization(how.method, how.blocksize, how.double_quant, how.dtype)


def _measured(merge: LoraMerge, counted: Counted) -> Done:
    metrics = {
        "merged_tensors": Metric(merge.merged, "1", "weights the adapter changed, counted while writing"),
        "parameters": Metric(counted.parameters, "parameters", "counted while writing"),
        "weight_bytes": Metric(counted.data_bytes, "B", "bytes of the written tensors"),
    }
    relative, error = merge.relative_change(), merge.quantization_change()
    if relative is not None:
        metrics["relative_change"] = Metric(
            relative, "1", "Frobenius norm of the change over that of the adapted weights, float32 before rounding"
        )
        metrics["change_norm"] = Metric(merge.change_norm(), "1", "Frobenius norm of the change over all weights")
    if error is not None:
        metrics["quantization_change"] = Metric(
            error, "1", "Frobenius norm of what the quantization took from the weights over that of the weights"
        )
    return Done(metrics)
