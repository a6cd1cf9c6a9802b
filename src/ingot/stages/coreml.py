"""``coreml``: a Hugging Face folder as a Core ML package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Given, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    import torch

    from ingot.kit.coreml_llama import Llama
    from ingot.kit.llama_config import LlamaShape

Length = Annotated[int, Field(ge=1, le=32768)]


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

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """RefusedInput: E-COREML-ARCH, E-COREML-LENGTH, E-COREML-TENSOR; StageFailed: E-COREML-SELFCHECK."""
        import torch

        from ingot.kit import coreml_package as package
        from ingot.kit.hf import read_config
        from ingot.kit.llama_config import llama_shape
        from ingot.kit.quant.plain import quantization

        torch.set_num_threads(given.threads)
        model = given.one("model")
        shape = llama_shape(read_config(model), "E-COREML-ARCH")
        _refuse_long(shape, self.sequence_lengths)
        settings = package.Settings(
            self.sequence_lengths, self.compute_precision, self.weights == "int8", self.minimum_deployment_target
        )
        module, difference, parameters = _module(model, shape, max(self.sequence_lengths), progress)
        progress.phase("convert")
        converted = package.convert(module, settings)
        del module
        progress.phase("save and check")
        target = out / "model.mlpackage"
        package.save(converted, target)
        facts = package.check(target, (shape.vocabulary, shape.hidden), settings)
        quantized = quantization(read_config(model))
        notes = {} if quantized is None else {"dequantized_from": quantized}
        return Done(_metrics(target, parameters, difference, facts), notes=notes)


def _refuse_long(shape: LlamaShape, lengths: tuple[int, ...]) -> None:
    from ingot.errors import RefusedInput

    if max(lengths) > shape.context:
        raise RefusedInput(
            "E-COREML-LENGTH",
            f"the sequence length {max(lengths)} is above the model's context of {shape.context} tokens",
        )


def _module(model: Path, shape: LlamaShape, length: int, progress: Progress) -> tuple[Llama, float, int]:
    """Our module, its largest difference from transformers, and the number of weights."""
    import torch

    from ingot.errors import StageFailed
    from ingot.kit.coreml_llama import build_llama
    from ingot.kit.quant.plain import iter_plain_tensors

    progress.phase("compare with transformers")
    count = min(length, 64)
    ids = torch.randint(shape.vocabulary, (1, count), generator=torch.Generator().manual_seed(0))
    wanted = _reference_logits(model, ids)
    module = build_llama(shape, iter_plain_tensors(model), length)
    with torch.no_grad():
        found = module(ids.to(torch.int32))
    difference = float((found - wanted).abs().max())
    # both compute in fp32 and differ in the order of sums only
    allowed = 1e-3 * max(1.0, float(wanted.abs().max()))
    if not difference <= allowed:
        raise StageFailed(
            "E-COREML-SELFCHECK",
            "the module to convert does not compute what transformers computes",
            facts=[f"largest difference of the logits {difference:.3g}, allowed {allowed:.3g}"],
        )
    own = {parameter.data_ptr(): parameter.numel() for parameter in module.parameters()}
    return module, difference, sum(own.values())


def _reference_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    import torch

    from ingot.kit.hf import load_model

    # in its own type first, so that compressed weights are rounded as the checkpoint's users get them
    reference = load_model(model).float()
    # The package computes with plain inputs; W8A8 and FP8 round them, too, which is no matter of weights.
    for module in reference.modules():
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False
    with torch.no_grad():
        logits: torch.Tensor = reference(input_ids=ids, use_cache=False).logits.float()
    return logits


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
