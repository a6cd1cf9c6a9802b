"""``quantize``: integer weights in a checkpoint that transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Format, Given, Metric, Metrics, Progress, Role, Stage
from ingot.errors import RefusedInput, StageFailed

if TYPE_CHECKING:
    import torch


class Quantize(Stage):
    """W8A16: int8 weights of the linear layers, round to nearest, activations as they were.

    One scale an output row, or with ``group_size`` one for so many inputs of it. Embeddings, norms and the output
    embedding stay as they are. Streams; then reads the written file again and compares it with the input.
    """

    kind: ClassVar[str] = "quantize"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed-tensors")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed_tensors")

    scheme: Literal["W8A16"] = Field(default="W8A16", description="Bits of weights and activations")
    group_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="Inputs that share a scale; unless given, a whole output row does"
    )

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Quantize; see the class. RefusedInput: E-QUANTIZE-*, E-QUANTIZED."""
        import torch

        from ingot.kit import compressed, hf, layers

        model = given.one("model")
        layers.refuse_quantized(model, "quantize")
        torch.set_num_threads(given.threads)
        chosen = {f"{module}.weight" for module in layers.linear_weights(model)}
        self._check_shapes(model, chosen)
        progress.phase("quantize")
        hf.write_model(out, self._stream(model, chosen, progress))
        head = layers.output_module(model)
        quantization = compressed.config_of(self.group_size, [head] if head else [])
        layers.copy_model_files(model, out, config={**hf.read_config(model), "quantization_config": quantization})
        progress.phase("verify")
        return self._proof(model, out, chosen, progress)

    def _check_shapes(self, model: Path, chosen: set[str]) -> None:
        from ingot.kit import hf

        found = [entry for _, entry in hf.entries(model) if entry.name in chosen]
        if not found:
            raise RefusedInput("E-QUANTIZE-MODULES", "the model has no linear layers to quantize")
        bad = [entry for entry in found if self.group_size and entry.shape[-1] % self.group_size]
        if bad:
            raise RefusedInput(
                "E-QUANTIZE-SHAPE",
                f"group_size {self.group_size} does not divide every row",
                facts=[f"{entry.name}: {tuple(entry.shape)}" for entry in bad[:3]],
                hint="choose a divisor of all row lengths, or leave group_size out",
            )

    def _stream(self, model: Path, chosen: set[str], progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
        from ingot.kit import compressed, hf

        total = len(hf.tensor_names(model))
        for done, (name, tensor) in enumerate(hf.iter_tensors(model), 1):
            if name in chosen:
                yield from compressed.encode(name.removesuffix(".weight"), tensor, self.group_size).items()
            else:
                yield name, tensor
            progress(done, total, "tensors")

    def _proof(self, model: Path, out: Path, chosen: set[str], progress: Progress) -> Metrics:
        """Compare what was written with the input, weight by weight."""
        from ingot.kit import compressed, hf

        plain = compressed.dequantize_model(out)
        sums = _Sums()
        waiting: dict[str, torch.Tensor] = {}
        total = len(hf.tensor_names(model))
        for done, (name, before) in enumerate(hf.iter_tensors(model), 1):
            # both are in order of names, but for shards: what comes early waits
            while name not in waiting:
                found = next(plain, None)
                if found is None:
                    raise StageFailed("E-QUANTIZE-VERIFY", f"{name!r} is missing from what was written")
                waiting[found[0]] = found[1]
            after = waiting.pop(name)
            if name in chosen:
                sums.add(name, before, after, compressed.scales_of(before, self.group_size))
            elif not before.equal(after):
                raise StageFailed("E-QUANTIZE-VERIFY", f"{name!r} was not to be changed, but was")
            progress(done, total, "tensors")
        return sums.metrics(sum(path.stat().st_size for path in hf.tensor_files(out)), hf.entries(model))


@dataclass
class _Sums:
    """What the comparison adds up."""

    layers: int = 0
    parameters: int = 0
    worst: float = 0.0
    error: float = 0.0
    weight: float = 0.0

    def add(self, name: str, before: torch.Tensor, after: torch.Tensor, scale: torch.Tensor) -> None:
        """Add one layer. StageFailed (E-QUANTIZE-VERIFY) when a weight is off by more than rounding explains.

        The bound: half a step for the integer, and half a unit in the last place of the dtype for the product
        ``q·s``, of which ``|q| ≤ 127`` (for bfloat16 up to another quarter of a step).
        """
        import torch

        step = scale.float().repeat_interleave(before.shape[1] // scale.shape[1], dim=1)
        off = (before.float() - after.float()).abs()
        bound = step * (0.5 + 127 * torch.finfo(after.dtype).eps / 2) * 1.001
        if before.shape != after.shape or not bool((off <= bound).all()):
            raise StageFailed(
                "E-QUANTIZE-VERIFY",
                f"{name!r} reads back further from its weights than rounding explains",
                facts=[f"largest error {float((off / step).max()):.3f} steps"],
            )
        self.layers += 1
        self.parameters += before.numel()
        self.worst = max(self.worst, float((off / step).max()))
        self.error += float(off.double().square().sum())
        self.weight += float(before.double().square().sum())

    def metrics(self, size: int, entries: Iterator[tuple[Path, Any]]) -> dict[str, Metric]:
        """The metrics of the whole; ``entries`` are the input's tensors, whose elements are the parameters."""
        parameters = before = 0
        for _, entry in entries:
            count = 1
            for length in entry.shape:
                count *= length
            parameters += count
            before += entry.end - entry.begin
        return {
            "weight_bytes": Metric(size, "B", "size of the safetensors files"),
            "bits_per_weight": Metric(size * 8 / parameters, "bits", "size of the files over all parameters"),
            "compression": Metric(before / size, "1", "bytes of the input's tensors over those of the files"),
            "quantized_layers": Metric(self.layers, "1", "linear layers with int8 weights"),
            "quantized_parameters": Metric(self.parameters, "parameters", "weights of these layers"),
            "max_error_steps": Metric(
                self.worst, "1", "largest |w − dequantized w| over its scale, read back from the file"
            ),
            "relative_error": Metric(
                (self.error / self.weight) ** 0.5 if self.weight else 0.0,
                "1",
                "Frobenius norm of the error over that of these weights, read back from the file",
            ),
        }
