"""``coreml``: a Hugging Face folder as a Core ML package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Given, Least, Measure, Metric, Progress, Role, Serving, Stage

if TYPE_CHECKING:
    from ingot.kit.decoder.layers import Decoder
    from ingot.kit.decoder.shape import DecoderShape

Length = Annotated[int, Field(ge=1, le=32768)]
#: Bits of a weight, without scales.
_BITS = {"float16": 16, "float32": 32, "int8": 8}


class Coreml(Stage):
    """Writes ``model.mlpackage``: ids ``input_ids`` (int32, 1 × n) to ``logits`` (1 × n × vocabulary).

    A small module of our own takes the checkpoint's weights, plain or compressed; its logits are compared with those
    of transformers before it is traced. The saved package is read back and its interface and stored types checked.
    It runs on Apple's systems only; here nothing is predicted.
    """

    kind: ClassVar[str] = "coreml"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "coreml"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(accepts=("hf",))}
    tools: ClassVar[tuple[str, ...]] = ("coremltools", "torch")
    needs: ClassVar[tuple[str, ...]] = ("compressed-tensors", "numpy", "safetensors", "transformers")
    extra: ClassVar[str | None] = "coreml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("bits_per_weight", "1"),
        Measure("operations", "1"),
        Measure("operation_kinds", "1"),
        Measure("module_max_difference", "1"),
        Measure("weight_bytes_TYPE", "B", "for each type of stored weights"),
    )

    weights: Literal["float16", "float32", "int8"] = Field(
        default="float16",
        description="How matrices are stored; int8 is symmetric with one scale a row (from 2,048 weights up)",
    )
    sequence_lengths: tuple[Length, ...] = Field(
        default=(128, 256), min_length=1, max_length=128, description="Input lengths; one makes a fixed shape"
    )
    compute_precision: Literal["float16", "float32"] = Field(
        default="float16", description="What activations are computed in; also the type of the logits"
    )
    minimum_deployment_target: Literal["iOS17", "iOS18"] = Field(
        default="iOS17", description="The oldest system that runs it (iOS18 stands for macOS 15, too)"
    )

    @model_validator(mode="after")
    def _agree(self) -> Coreml:
        if len(set(self.sequence_lengths)) != len(self.sequence_lengths):
            raise ValueError("sequence_lengths names a length twice")
        if self.weights in {"float16", "float32"} and self.weights != self.compute_precision:
            raise ValueError(
                f"weights: {self.weights} needs compute_precision: {self.weights} (Core ML keeps plain weights in it)"
            )
        return self

    def least_output(self, inputs: Mapping[str, Least]) -> Least:
        """All weights in the bits that are asked for."""
        return inputs["model"].stored(_BITS[self.weights])

    def serving(self, model: Least) -> Serving:
        """See ``Stage``."""
        return Serving.of(model, _BITS[self.weights])

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """RefusedInput: E-COREML-ARCH, E-COREML-LENGTH, E-COREML-TENSOR; StageFailed: E-COREML-SELFCHECK."""
        import torch

        from ingot.kit.coreml import package
        from ingot.kit.coreml.prefill import Prefill
        from ingot.kit.decoder.shape import decoder_shape
        from ingot.kit.hf import read_config
        from ingot.kit.quant.plain import quantization

        torch.set_num_threads(given.threads)
        model = given.one("model")
        shape = decoder_shape(read_config(model), "E-COREML-ARCH")
        _refuse_long(shape, self.sequence_lengths)
        settings = package.Settings(
            self.sequence_lengths, self.compute_precision, self.weights == "int8", self.minimum_deployment_target
        )
        module, difference, parameters = _module(model, shape, max(self.sequence_lengths), progress)
        progress.phase("convert")
        converted = package.convert(Prefill(module, max(self.sequence_lengths)), settings)
        del module
        progress.phase("save and check")
        target = out / "model.mlpackage"
        package.save(converted, target)
        facts = package.check(target, (shape.vocabulary, shape.hidden), settings)
        quantized = quantization(read_config(model))
        notes = {} if quantized is None else {"dequantized_from": quantized}
        return Done(_metrics(target, parameters, difference, facts), notes=notes)


def _refuse_long(shape: DecoderShape, lengths: tuple[int, ...]) -> None:
    from ingot.errors import RefusedInput

    if max(lengths) > shape.context:
        raise RefusedInput(
            "E-COREML-LENGTH",
            f"the sequence length {max(lengths)} is above the model's context of {shape.context} tokens",
        )


def _module(model: Path, shape: DecoderShape, length: int, progress: Progress) -> tuple[Decoder, float, int]:
    """Our module, its largest difference from transformers, and the number of weights."""
    from ingot.kit.decoder.build import build_decoder, compare_with_transformers, parameters
    from ingot.kit.decoder.layers import Form
    from ingot.kit.quant.plain import iter_plain_tensors

    progress.phase("compare with transformers")
    module = build_decoder(shape, iter_plain_tensors(model), Form(), "E-COREML-TENSOR")
    difference = compare_with_transformers(module, model, min(length, 64), "E-COREML-SELFCHECK")
    return module, difference, parameters(module)


def _metrics(package: Path, parameters: int, difference: float, facts: Any) -> dict[str, Metric]:
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    return {
        "bytes": Metric(size, "B", "size of all files of the package"),
        "parameters": Metric(parameters, "parameters", "weights of the module, tied ones counted once"),
        "bits_per_weight": Metric(8 * size / parameters, "1", "bits of the whole package over the parameters"),
        "operations": Metric(facts.operations, "1", "operations of the saved program other than constants"),
        "operation_kinds": Metric(facts.operation_kinds, "1", "different operations of the saved program"),
        "module_max_difference": Metric(
            difference, "1", "largest absolute difference of the fp32 logits from transformers' on random ids", n=64
        ),
        **{
            f"weight_bytes_{kind}": Metric(count, "B", f"stored weights of type {kind} in the saved program")
            for kind, count in facts.weight_bytes.items()
        },
    }
