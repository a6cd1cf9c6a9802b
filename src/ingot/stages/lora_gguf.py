"""``lora_gguf``: a LoRA adapter as a GGUF that llama.cpp adds to its base while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Format, Given, Measure, Metric, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.gguf.lora import Half
    from ingot.kit.gguf.writer import Field as GgufField


class LoraGguf(Stage):
    """Writes ``adapter.gguf`` for ``llama-cli --lora``, beside a GGUF of the base.

    Only the base's config.json is read: it says how llama.cpp names the weights and orders their rows. What such a
    file cannot say is refused (DoRA, trained biases, weights and tokens that replace the base's); rank-stabilised
    adapters and ranks or alphas of single modules keep their scale. The metadata says what the file was made of.
    """

    kind: ClassVar[str] = "lora_gguf"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "gguf_adapter"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "adapter": Role(accepts=("adapter",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("llama-cpp-python", "torch")
    needs: ClassVar[tuple[str, ...]] = ("gguf", "numpy", "safetensors", "transformers")
    extra: ClassVar[str | None] = "gguf"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bytes", "B"),
        Measure("parameters", "parameters"),
        Measure("adapted_tensors", "1"),
        Measure("tensors_TYPE", "1", "for each type of tensors in the file"),
    )

    type: Literal["F32", "F16", "BF16", "Q8_0"] = Field(
        default="F32", description="Of both matrices; rows that are no whole number of blocks of Q8_0 become F16"
    )
    allow_other_base: bool = Field(
        default=False, description="Take an adapter that records another base than this one, if names and shapes fit"
    )

    def run(self, given: Given, out: Path, progress: Progress) -> Mapping[str, Metric]:
        """Write the file; see the class.

        RefusedInput: E-GGUF-LORA, E-GGUF-ARCH, E-GGUF-NONFINITE, E-NONFINITE, E-MERGE-*, E-NOT-ADAPTER, E-NOT-HF;
        StageFailed: E-GGML.
        """
        import torch

        from ingot.kit.gguf.layout import gguf_layout
        from ingot.kit.gguf.lora import halves, lora_fields, write_lora
        from ingot.kit.hf import read_config
        from ingot.kit.lora.read import read_adapter
        from ingot.kit.lora.trained_on import refuse_other_base

        torch.set_num_threads(1)
        progress.phase("write the adapter")
        adapter = read_adapter(given.one("adapter"))
        layout = gguf_layout(read_config(given.one("model")))
        if not self.allow_other_base:
            refuse_other_base([adapter.record], given.digests["model"][0])
        pairs = halves(adapter, layout, self.type)
        path = out / "adapter.gguf"
        write_lora(path, [*lora_fields(layout, adapter.settings), *self._provenance(given)], pairs)
        return _metrics(path.stat().st_size, pairs)

    def _provenance(self, given: Given) -> Sequence[GgufField]:
        from ingot.core.plan import tool_version
        from ingot.kit.gguf.export import provenance

        return provenance(
            {
                "kind": f"{self.kind} {self.revision}",
                "model.digest": given.digests["model"][0],
                "adapter.digest": given.digests["adapter"][0],
                "tools": [f"{name}=={tool_version(name)}" for name in sorted(self.tools_used())],
            }
        )


def _metrics(size: int, pairs: Sequence[Half]) -> dict[str, Metric]:
    counts = Counter(half.type for half in pairs)
    return {
        "bytes": Metric(size, "B", "size of the file"),
        "parameters": Metric(sum(half.rows.numel() for half in pairs), "parameters", "weights of the adapter, counted"),
        "adapted_tensors": Metric(len(pairs) // 2, "1", "weights of the base that the adapter changes"),
        **{
            f"tensors_{name.lower()}": Metric(count, "1", f"tensors of type {name} in the file")
            for name, count in sorted(counts.items())
        },
    }
