"""``merge``: add an adapter to its base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Format, Given, Metric, Metrics, Progress, Role, Stage

if TYPE_CHECKING:
    import torch


class Merge(Stage):
    """Writes ``W + s·B·A`` for every adapted weight and the other tensors as they are.

    The sum is computed in float32 and rounded once. The base is streamed: memory holds the adapter and the shard
    being written, never the model.
    """

    kind: ClassVar[str] = "merge"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "adapter": Role(accepts=("adapter",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch",)

    dtype: Literal["base", "bfloat16", "float16", "float32"] = Field(
        default="base", description="Of the written floating-point weights; base keeps each tensor's own"
    )

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Merge; see the class. RefusedInput: E-MERGE-*, E-NOT-ADAPTER, E-QUANTIZED."""
        import torch

        from ingot.kit import hf, layers, lora

        model = given.one("model")
        layers.refuse_quantized(model, "merge")
        config = hf.read_config(model)
        adapter = lora.read_adapter(given.one("adapter"))
        names = hf.tensor_names(model)
        tied = bool(config.get("tie_word_embeddings")) and "lm_head.weight" not in names
        lora.check_names(adapter, names, tied=tied)
        dtype = None if self.dtype == "base" else hf.torch_dtype(self.dtype)
        work = lora.Merge(adapter, dtype, tied)
        progress.phase("merge")
        torch.set_num_threads(given.threads)
        hf.write_model(out, _watched(work.stream(hf.iter_tensors(model)), work, len(names), progress))
        if work.untie():
            config = {**config, "tie_word_embeddings": False}
        if dtype is not None:
            config = {**config, "dtype": self.dtype}
            config.pop("torch_dtype", None)
        layers.copy_model_files(model, out, config=config)
        return _metrics(work)


def _watched(
    tensors: Iterator[tuple[str, torch.Tensor]], work: object, total: int, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    for done, item in enumerate(tensors, 1):
        yield item
        progress(min(done, total), total, "tensors", MB=getattr(work, "output_bytes", 0) / 1e6)


def _metrics(work: object) -> dict[str, Metric]:
    from ingot.kit.lora import Merge as Work

    assert isinstance(work, Work)
    metrics = {
        "merged_tensors": Metric(work.merged, "1", "weights the adapter changed, counted while writing"),
        "parameters": Metric(work.parameters, "parameters", "counted while writing"),
        "weight_bytes": Metric(work.output_bytes, "B", "bytes of the written tensors"),
    }
    if work.weight_squares > 0:
        metrics["relative_change"] = Metric(
            (work.delta_squares / work.weight_squares) ** 0.5,
            "1",
            "Frobenius norm of the change over that of the adapted weights, float32 before rounding",
        )
        metrics["change_norm"] = Metric(work.delta_squares**0.5, "1", "Frobenius norm of the change over all weights")
    return metrics
