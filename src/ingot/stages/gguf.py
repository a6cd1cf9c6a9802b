"""``gguf``: a Hugging Face folder as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ingot.core.stage import Format, Given, Metric, Metrics, Progress, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.gguf.check import Checked

_PLAIN = ("F32", "F16", "BF16")

FileType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q2_K",
]  # fmt: skip


class Gguf(Stage):
    """Writes ``model.gguf`` tensor by tensor, with the tokenizer and the chat template.

    Quantized types are made by llama.cpp's own quantizer from an unquantized file in scratch, of the type in which
    the weights are stored, so that nothing is rounded twice. Before it ends, llama.cpp opens the file, gives the
    token ids of the Hugging Face tokenizer on probe texts, and generates.
    """

    kind: ClassVar[str] = "gguf"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "gguf"
    inputs: ClassVar[Mapping[str, Role]] = {"model": Role(accepts=("hf",))}
    tools: ClassVar[tuple[str, ...]] = ("llama-cpp-python", "torch", "transformers")
    needs: ClassVar[tuple[str, ...]] = ("compressed-tensors", "gguf", "jinja2", "numpy", "safetensors")
    extra: ClassVar[str | None] = "gguf"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    type: FileType = Field(description="The file type in llama.cpp's naming")

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """RefusedInput: E-GGUF-ARCH, E-GGUF-TENSOR, E-GGUF-TOKENIZER; StageFailed: E-GGUF-SELFCHECK, E-LLAMA-CPP."""
        import torch

        from ingot.kit.gguf.check import check_gguf
        from ingot.kit.gguf.export import write_plain
        from ingot.kit.hf import load_tokenizer
        from ingot.kit.llama_cpp import quantize

        torch.set_num_threads(given.threads)
        model, target = given.one("model"), out / "model.gguf"
        tokenizer = load_tokenizer(model)
        plain = self.type in _PLAIN
        progress.phase("write tensors")
        written = write_plain(
            model,
            tokenizer,
            target if plain else given.scratch / "plain.gguf",
            self.type if plain else None,
            lambda done, total: progress(done, total, "B"),
        )
        if not plain:
            progress.phase(f"quantize to {self.type}")
            quantize(given.scratch / "plain.gguf", target, self.type, threads=given.threads)
        progress.phase("check with llama.cpp")
        checked = check_gguf(target, tokenizer, threads=given.threads)
        return _metrics(target, self.type, written.parameters, checked)


def _metrics(path: Path, kind: str, parameters: int, checked: Checked) -> dict[str, Metric]:
    from ingot.kit.gguf.reader import read_gguf

    tensors = read_gguf(path).tensors
    size = path.stat().st_size
    counts = Counter(info.type for info in tensors)
    # llama.cpp takes another type for a matrix whose rows are no multiple of the asked type's block
    block = 1 if kind in _PLAIN else 256 if "_K" in kind else 32
    fallbacks = sum(1 for info in tensors if len(info.shape) > 1 and info.shape[-1] % block)
    return {
        "bytes": Metric(size, "B", "size of the file"),
        "parameters": Metric(parameters, "parameters", "weights of the source model, counted"),
        "bits_per_weight": Metric(8 * size / parameters, "1", "bits of the whole file over the parameters"),
        "fallback_tensors": Metric(
            fallbacks, "1", "matrices in the file whose rows are no multiple of the asked type's block"
        ),
        "probe_texts": Metric(
            checked.texts, "1", "texts on which llama.cpp and the Hugging Face tokenizer gave equal ids"
        ),
        "load_s": Metric(checked.load_seconds, "s", "time for llama.cpp to open the file, once, page cache warm"),
        **{
            f"tensors_{name.lower()}": Metric(count, "1", f"tensors of type {name} in the file")
            for name, count in sorted(counts.items())
        },
    }
