"""GGUF and ONNX of a model in float32: what the runtimes of other exports are measured with beside an export."""

from __future__ import annotations

from pathlib import Path

from ingot.core.stage import Given
from ingot.kit.hf import load_tokenizer
from ingot.kit.quant.plain import open_plain

#: As the kind ``onnx`` has it by default.
_OPSET, _OUTSIDE = 21, 100 << 20


class _Silent:
    """A Progress that nobody watches."""

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        pass

    def phase(self, name: str) -> None:
        pass


def make_gguf(model: Path, archive: Path, threads: int) -> None:
    """Write ``model.gguf`` of type F32. RefusedInput as the kind ``gguf`` has it."""
    from ingot.kit.gguf.export import Product, export, provenance
    from ingot.kit.gguf.hf_input import form_of
    from ingot.kit.gguf.mixture import Wish

    given = Given({"model": (model,)}, {}, archive, threads=threads)
    weights, _source = open_plain(given, _Silent(), finite=True)
    form = form_of(weights, load_tokenizer(weights.folder))
    product = Product(archive / "model.gguf", Wish("F32"), provenance({}))
    export(weights, form, [product], lambda: "0" * 64, threads=threads, watch=_Silent())


def make_onnx(model: Path, archive: Path, threads: int) -> None:
    """Write ``model.onnx`` with a cache. RefusedInput and StageFailed as the kind ``onnx`` has them."""
    import torch

    from ingot.kit.onnx_model.convert import Settings
    from ingot.kit.onnx_model.export import Wishes, export

    torch.set_num_threads(threads)
    scratch = archive.with_name(f"{archive.name}.scratch")
    scratch.mkdir()
    settings = Settings("float32", cached=True, opset=_OPSET, outside=_OUTSIDE)
    export(model, archive, scratch, Wishes(settings, None, "none", {}), _Silent())


MAKE = {"llama_cpp": make_gguf, "onnxruntime": make_onnx}
