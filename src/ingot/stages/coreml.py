"""``coreml``: a Hugging Face folder as a Core ML package that is proven to compute what its source computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Frozen, Given, Least, Measure, Metric, Progress, Role, Serving, Stage
from ingot.errors import RefusedInput
from ingot.stages._export import (
    DATA,
    EXECUTION_MEASURES,
    PARITY_MEASURES,
    RUNTIME_MEASURES,
    TOKENIZER_MEASURE,
    Benchmark,
    Parity,
    measured_by,
    with_speed,
)

if TYPE_CHECKING:
    from ingot.kit.coreml.convert import Model
    from ingot.kit.coreml.settings import Settings
    from ingot.kit.parity.golden import Golden
    from ingot.kit.parity.reference import Reference

Length = Annotated[int, Field(ge=1, le=1 << 17)]
Weights = Literal["float16", "float32", "int8", "int4", "palettized4", "palettized6", "palettized8"]

#: Bits of a stored weight at the least.
_BITS = {
    "float16": 16, "float32": 32, "int8": 8, "int4": 4, "palettized4": 4, "palettized6": 6, "palettized8": 8,
}  # fmt: skip
_INT4_BLOCK = 32


class Range(Frozen):
    """Any length from ``min`` to ``max``."""

    min: Length = Field(description="tokens that a call has at the least")
    max: Length = Field(description="tokens that a call has at the most")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min >= self.max:
            raise ValueError("min must be less than max; one length is written as a list of one")
        return self


class Coreml(Stage):
    """Writes ``model.mlpackage``: ids ``input_ids`` (int32, 1 × n) to ``logits`` (1 × n × vocabulary).

    With ``kv_cache`` the package has two functions that share weights and states: ``prefill`` reads n tokens at a
    ``position``, ``decode`` one. The program is converted with empty matrices, which are written into it one by one, so
    that memory stays small. The saved package is checked, then run: by the reference interpreter on any machine, as it
    was saved, on golden texts, every listed length included, against the source (and against the weights it stores).
    Beside it lie the tokenizer's files and ``contract.json``. On a Mac, Core ML's own plan and speed are read, too.
    """

    kind: ClassVar[str] = "coreml"
    revision: ClassVar[int] = 2
    produces: ClassVar[Format] = "coreml"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(accepts=("hf",)), "data": DATA}
    tools: ClassVar[tuple[str, ...]] = ("coremltools", "torch")
    needs: ClassVar[tuple[str, ...]] = ("accelerate", "compressed-tensors", "numpy", "safetensors", "transformers")
    extra: ClassVar[str | None] = "coreml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "1"),
        Measure("operations", "1"),
        Measure("operation_kinds", "1"),
        Measure("weight_bytes_TYPE", "B", "for each type of stored weights"),
        Measure("matrix_bytes_TYPE", "B", "for each type that matrices are stored in"),
        *PARITY_MEASURES,
        *EXECUTION_MEASURES,
        TOKENIZER_MEASURE,
        *RUNTIME_MEASURES,
        Measure("FUNCTION_on_DEVICE", "1", "on a Mac: by Core ML's plan"),
        Measure("FUNCTION_latency_pSHARE_s", "s", "on a Mac"),
    )

    weights: Weights = Field(
        default="float16",
        description="How matrices are stored, embeddings included: int8 has one scale a row, int4 one a block,"
        " palettized ones index a table (k-means, nothing drawn at random)",
    )
    block_size: Annotated[int, Field(ge=1, le=1 << 17)] | None = Field(
        default=None,
        description="int4: weights that share a scale (null: 32); palettized: rows that share a table (null: all)",
    )
    sequence_lengths: Annotated[tuple[Length, ...], Field(min_length=1, max_length=128)] | Range = Field(
        default=(128, 256, 512), description="Tokens of a call: a list (one makes a fixed shape), or {min, max}"
    )
    kv_cache: bool = Field(default=False, description="Functions prefill and decode over a state of keys and values")
    context: Length | None = Field(default=None, description="With kv_cache: positions that the state holds")
    compute_precision: Literal["float16", "float32"] = Field(
        default="float16", description="What activations are computed in; also the type of the logits"
    )
    minimum_deployment_target: Literal["iOS17", "iOS18"] = Field(
        default="iOS17", description="The oldest system that runs it (iOS18 stands for macOS 15, too)"
    )
    compute_units: Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"] = Field(
        default="ALL", description="What it is meant to run on: told in contract.json, a package cannot hold it"
    )
    parity: Parity = Field(default=Parity(), description="How the package is compared with its source")
    benchmark: Benchmark | None = Field(default=None, description="What speed is measured; null: none")

    @model_validator(mode="after")
    def _agree(self) -> Coreml:
        listed = self.sequence_lengths if isinstance(self.sequence_lengths, tuple) else ()
        if len(set(listed)) != len(listed):
            raise ValueError("sequence_lengths names a length twice")
        if self.weights in {"float16", "float32"} and self.weights != self.compute_precision:
            raise ValueError(
                f"weights: {self.weights} needs compute_precision: {self.weights} (Core ML keeps plain weights in it)"
            )
        if self.block_size is not None and self.weights in {"float16", "float32", "int8"}:
            raise ValueError(f"weights: {self.weights} has no blocks; block_size is of int4 and palettized weights")
        if self.minimum_deployment_target != "iOS18" and (needs := self._needs_ios18()):
            raise ValueError(f"{needs} needs minimum_deployment_target: iOS18")
        self._agree_on_cache()
        return self

    def _needs_ios18(self) -> str:
        if self.kv_cache:
            return "kv_cache"
        if self.weights == "int4":
            return "weights: int4"
        return "block_size" if self.block_size is not None else ""

    def _agree_on_cache(self) -> None:
        if self.kv_cache != (self.context is not None):
            raise ValueError("kv_cache: true and context go together: the state holds so many positions")
        if self.kv_cache and self.compute_precision != "float16":
            raise ValueError("kv_cache needs compute_precision: float16: states are of no other type")
        if self.context is not None and self.context < self.longest():
            raise ValueError(f"a call of {self.longest()} tokens does not fit into a context of {self.context}")

    def longest(self) -> int:
        """The most tokens that a call can have."""
        lengths = self.sequence_lengths
        return lengths.max if isinstance(lengths, Range) else max(lengths)

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """What its weights compute is compared apart where they are quantized; the rest depends on the machine."""
        quantized = self.weights not in {"float16", "float32"}
        return measured_by(super().measured(roles), self.benchmark, proven=True, quantized=quantized)

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """The stored weights."""
        # its weights are in no file whose elements are counted
        return Least(inputs["model"].stored(_BITS[self.weights]).bytes) if "model" in inputs else Least()

    def serving(self, model: Least) -> Serving:
        """See ``Stage``."""
        # states are in fp16
        return Serving.of(model, _BITS[self.weights], cached=2 if self.kv_cache else 0, context=self.context or 0)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """RefusedInput: E-COREML-ARCH, -BLOCK, -LENGTH, -RANGE, -TENSOR, E-TOKENIZER; StageFailed: E-COREML-INT64,
        -OPSET, -SELFCHECK, E-PARITY."""
        import torch

        from ingot.kit.contract import ship_tokenizer, write_contract
        from ingot.kit.coreml.quiet import quiet

        quiet()
        from ingot.kit.coreml import convert, describe, engine, mac
        from ingot.kit.coreml.check import check
        from ingot.kit.coreml.figures import figures
        from ingot.kit.hf import read_config
        from ingot.kit.quant.plain import quantization

        torch.set_num_threads(given.threads)
        model = self._model(given.one("model"))
        tokenizer = ship_tokenizer(given.one("model"), out)
        known = self.parity.of_source(given, self.longest(), progress, model.settings.lengths.listed)
        package = out / "model.mlpackage"
        convert.convert(model, package, given.scratch, self._facts(given), progress)
        progress.phase("check")
        facts = check(package, model)
        config = read_config(given.one("model"))
        architecture = str(config["architectures"][0])
        write_contract(out, describe.contract(model, architecture, tokenizer, self.compute_units))
        metrics = figures(package, model, facts)
        proven, notes = self._prove(given, out, model, known, progress)
        metrics |= proven
        metrics |= mac.measure(package, model.settings, self.compute_units)
        notes["neural_engine"] = engine.reasons(model, facts)
        if (method := quantization(config)) is not None:
            notes["dequantized_from"] = method
        done = Done(metrics, notes=notes)
        return with_speed([(self.benchmark, out, done)], given.one("model"), given, progress)[0]

    def _model(self, folder: Path) -> Model:
        """What is converted, refused where it cannot be before anything is computed."""
        from ingot.kit.coreml.checkpoint import Checkpoint, refuse_blocks
        from ingot.kit.coreml.convert import Model
        from ingot.kit.decoder.shape import decoder_shape
        from ingot.kit.hf import read_config

        shape = decoder_shape(read_config(folder), "E-COREML-ARCH")
        longest = self.context or self.longest()
        if longest > shape.context:
            name = "context" if self.context else "sequence length"
            raise RefusedInput(
                "E-COREML-LENGTH",
                f"the {name} {longest} is above the model's context of {shape.context} tokens",
                hint=f"set {'context' if self.context else 'sequence_lengths'} to at most {shape.context}",
            )
        model = Model(shape, Checkpoint(folder, shape), self.settings())
        refuse_blocks(model.checkpoint, model.settings)
        return model

    def settings(self) -> Settings:
        """The parameters as ``kit.coreml`` takes them."""
        from ingot.kit.coreml.settings import Lengths, Settings

        given = self.sequence_lengths
        lengths = Lengths((), given.min, given.max) if isinstance(given, Range) else Lengths.of(*given)
        block = self.block_size or (_INT4_BLOCK if self.weights == "int4" else 0)
        return Settings(
            lengths, self.compute_precision, self.weights, self.minimum_deployment_target, block, self.context or 0
        )

    def _facts(self, given: Given) -> dict[str, str]:
        """What the package says of its making: nothing that is not in the key."""
        from ingot.core.plan import tool_version

        return {
            "ingot.kind": f"{self.kind} {self.revision}",
            "ingot.model.digest": given.digests["model"][0],
            "ingot.tools": " ".join(f"{name}=={tool_version(name)}" for name in sorted(self.tools_used())),
        }

    def _prove(
        self, given: Given, out: Path, model: Model, known: tuple[Golden, Reference], progress: Progress
    ) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Run what was saved and compare it with the source, and with the weights that it stores."""
        from ingot.kit.coreml.runs import open_runs, stored_weights
        from ingot.kit.hf import load_tokenizer
        from ingot.kit.parity.prove import prove
        from ingot.kit.parity.reference import SourceModel, record
        from ingot.kit.parity.tokenizers import check_tokenizer

        texts, reference = known
        folder, package, settings = given.one("model"), out / "model.mlpackage", model.settings
        progress.phase("prove")
        shipped = check_tokenizer(out, load_tokenizer(folder), texts)
        proof = prove(open_runs(package, model), texts, reference, self.parity.limits(settings.weights))
        metrics, notes = proof.metrics | {"tokenizer_texts": shipped}, {"parity": proof.notes}
        if not settings.plain:
            progress.phase("prove that it computes what its weights say")
            opened = lambda: SourceModel(  # noqa: E731
                folder, threads=given.threads, weights=stored_weights(package, model)
            )
            own = record(opened, texts, given.scratch / "execution")
            # limits in the spec are about what rounding may cost; what is computed has no such choice
            limits = Parity().limits(settings.precision)
            found = prove(open_runs(package, model), texts, own, limits, name="execution")
            metrics, notes["execution"] = metrics | found.metrics, found.notes
        return metrics, {"parity": notes}
