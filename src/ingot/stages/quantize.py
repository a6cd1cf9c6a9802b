"""``quantize``: integer weights in a checkpoint that transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Done, Format, Given, Metric, Progress, Role, Stage
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    from ingot.kit.rounding import Sums
    from ingot.kit.stream.vocabulary import Counted, Slot, Weights


class Quantize(Stage):
    """W8A16: int8 weights of the linear layers, round to nearest, activations as they were.

    One scale an output row, or with ``group_size`` one for so many inputs of it. Embeddings, norms and the output
    embedding stay as they are. It streams; what was packed is decoded again on the way and compared with the input.
    """

    kind: ClassVar[str] = "quantize"
    revision: ClassVar[int] = 2
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed-tensors")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed_tensors")
    streams: ClassVar[tuple[str, ...]] = ("model",)

    scheme: Literal["W8A16"] = Field(default="W8A16", description="Bits of weights and activations")
    group_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="Inputs that share a scale; unless given, a whole output row does"
    )
    allow_nonfinite: bool = Field(default=False, description="Take weights that are NaN or infinite as they are")

    def weightwise(self) -> bool:
        """Always: each row by itself."""
        return True

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Quantize; see the class. RefusedInput: E-QUANTIZE-*, E-QUANTIZED, E-NONFINITE."""
        from ingot.kit.stream.inputs import build

        return build(self, given, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The quantized checkpoint as a stream; the other files lie in the weights' folder."""
        from ingot.kit import compressed, hf, layers
        from ingot.kit.rounding import Rounding
        from ingot.kit.stream.chain import slots
        from ingot.kit.stream.inputs import open_input, side_folder

        weights = open_input(given, "model", progress, finite=not self.allow_nonfinite)
        model = weights.folder
        layers.refuse_quantized(model, "quantize")
        found = slots(weights)
        linear = layers.linear_weights(model, {slot.name for slot in found})
        chosen = {f"{module}.weight" for module in linear}
        self._check_shapes([slot for slot in found if slot.name in chosen])
        rounding = Rounding(chosen, self.group_size)
        head = layers.output_module(model)
        quantization = compressed.config_of(self.group_size, [head] if head else [])
        folder = side_folder(given)
        layers.copy_model_files(model, folder, config={**hf.read_config(model), "quantization_config": quantization})
        progress.phase("quantize")
        weights.chain.append(rounding)
        weights.folder = folder
        weights.measure = lambda counted: Done(_metrics(rounding.sums, counted, found))
        return weights

    def _check_shapes(self, found: Sequence[Slot]) -> None:
        if not found:
            raise RefusedInput("E-QUANTIZE-MODULES", "the model has no linear layers to quantize")
        bad = [slot for slot in found if self.group_size and slot.shape[-1] % self.group_size]
        if bad:
            raise RefusedInput(
                "E-QUANTIZE-SHAPE",
                f"group_size {self.group_size} does not divide every row",
                facts=[f"{slot.name}: {slot.shape}" for slot in bad[:3]],
                hint="choose a divisor of all row lengths, or leave group_size out",
            )


def _metrics(sums: Sums, counted: Counted, found: Sequence[Slot]) -> dict[str, Metric]:
    """The metrics of the whole; ``found`` are the input's tensors, whose elements are the parameters."""
    parameters, before = sum(slot.elements for slot in found), sum(slot.nbytes for slot in found)
    size = counted.file_bytes
    return {
        "weight_bytes": Metric(size, "B", "size of the safetensors files"),
        "bits_per_weight": Metric(size * 8 / parameters, "bits", "size of the files over all parameters"),
        "compression": Metric(before / size, "1", "bytes of the input's tensors over those of the files"),
        "quantized_layers": Metric(sums.layers, "1", "linear layers with int8 weights"),
        "quantized_parameters": Metric(sums.parameters, "parameters", "weights of these layers"),
        "max_error_steps": Metric(
            sums.worst, "1", "largest |w − dequantized w| over its scale, decoded from what was written"
        ),
        "relative_error": Metric(
            sums.relative_error,
            "1",
            "Frobenius norm of the error over that of these weights, decoded from what was written",
        ),
    }
