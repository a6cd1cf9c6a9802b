"""``imatrix``: which inputs of each matrix matter, measured on calibration documents, for ``gguf``'s low-bit types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ingot.core.stage import Done, Format, Given, Measure, Metric, Progress, Reproducibility, Role, Stage
from ingot.errors import RefusedInput


class Imatrix(Stage):
    """Writes ``imatrix.gguf`` in llama.cpp's form, computed by llama.cpp on the unquantized model.

    The documents' tokens are put end to end and cut into texts of ``context`` tokens, each begun as the model begins a
    text; what is left at the end is dropped. For every matrix of a layer the squares of its inputs are added up. One
    machine gives the same bytes again; another, whose processor adds in vectors of another width, may not.
    """

    kind: ClassVar[str] = "imatrix"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "imatrix"
    reproducibility: ClassVar[Reproducibility] = "device_dependent"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("llama-cpp-python", "torch", "transformers")
    needs: ClassVar[tuple[str, ...]] = ("compressed-tensors", "gguf", "jinja2", "numpy", "safetensors")
    extra: ClassVar[str | None] = "gguf"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    streams: ClassVar[tuple[str, ...]] = ("model",)
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("entries", "1"),
        Measure("chunks", "1"),
        Measure("tokens", "tokens"),
        Measure("bytes", "B"),
    )

    documents: int = Field(default=128, ge=1, description="Calibration documents, the first by their ids")
    context: int = Field(default=512, ge=16, le=512, description="Tokens that are seen at once")

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Compute it.

        RefusedInput: E-DATASET-EMPTY with fewer than one text of tokens, E-GGUF-* as ``gguf``; StageFailed: E-GGML,
        E-IMATRIX, E-LLAMA-CPP.
        """
        from ingot.kit.gguf.collect import collect
        from ingot.kit.gguf.imatrix import write_imatrix

        passed, texts = self._prepared(given, given.scratch / "plain.gguf", progress)
        progress.phase("watch llama.cpp")
        matrix = collect(
            given.scratch / "plain.gguf",
            texts,
            threads=given.threads,
            watch=lambda done, total: progress(done, total, "texts"),
        )
        write_imatrix(out / "imatrix.gguf", matrix, tuple(given.digests["calibration"]))
        entries, tokens = len(matrix.entries), len(texts) * self.context
        return Done(
            {
                "entries": Metric(entries, "1", "matrices whose inputs were measured"),
                "chunks": Metric(matrix.chunks, "1", f"texts of {self.context} tokens"),
                "tokens": Metric(tokens, "tokens", "tokens whose inputs were added up"),
                "bytes": Metric((out / "imatrix.gguf").stat().st_size, "B", "size of the file"),
            },
            passed=passed,
        )

    def _prepared(self, given: Given, path: Path, progress: Progress) -> tuple[dict[str, Done], list[list[int]]]:
        """The unquantized model in scratch, what was measured of a virtual input, and the texts."""
        from ingot.kit.gguf.export import Product, export, stored_type
        from ingot.kit.gguf.hf_input import form_of
        from ingot.kit.gguf.mixture import Wish
        from ingot.kit.hf import load_tokenizer
        from ingot.kit.quant.plain import open_plain
        from ingot.kit.stream.chain import slots

        weights, _ = open_plain(given, progress, finite=True)
        tokenizer = load_tokenizer(weights.folder)
        texts = self._texts(given, tokenizer)
        form = form_of(weights, tokenizer)
        product = Product(path, Wish(stored_type(slots(weights))), ())
        progress.phase("write the unquantized model")
        export(weights, form, [product], lambda: "", threads=given.threads, watch=progress)
        return {role: told() for role, told in weights.passed.items()}, texts

    def _texts(self, given: Given, tokenizer: object) -> list[list[int]]:
        from ingot.kit.calibration import read_texts

        found = read_texts(given.one("calibration"), tokenizer, documents=self.documents, max_length=1 << 30)
        ids = [token for text in found for token in text]
        texts = cut(ids, self.context, getattr(tokenizer, "bos_token_id", None) if _begins(tokenizer) else None)
        if not texts:
            raise RefusedInput(
                "E-DATASET-EMPTY",
                f"{len(found)} calibration documents give {len(ids)} tokens, fewer than one text of {self.context}",
                hint="a larger data set, or a smaller 'context'",
            )
        return texts


def cut(ids: Sequence[int], size: int, begin: int | None) -> list[list[int]]:
    """Texts of ``size`` tokens; the first token of each is ``begin``, if there is one (as llama.cpp's tool does)."""
    texts = [list(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]
    return texts if begin is None else [[begin, *text[1:]] for text in texts]


def _begins(tokenizer: object) -> bool:
    """Whether the model begins a text with a token of its own."""
    begun = tokenizer("a")["input_ids"]  # type: ignore[operator]
    return bool(begun) and begun[0] == getattr(tokenizer, "bos_token_id", None)
