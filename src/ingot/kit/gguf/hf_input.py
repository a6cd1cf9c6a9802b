"""A Hugging Face model, written or flowing, as the exporter wants it."""

from __future__ import annotations

from typing import Any

from ingot.core.stage import Given, Progress
from ingot.kit.compressed import CompressedSource
from ingot.kit.gguf.export import LayoutForm
from ingot.kit.gguf.layout import gguf_layout
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.hf import read_config
from ingot.kit.stream.inputs import expected_files, open_input, written
from ingot.kit.stream.nonfinite import RefuseNonFinite
from ingot.kit.stream.vocabulary import Weights


def open_plain(given: Given, progress: Progress, *, finite: bool) -> tuple[Weights, str | None]:
    """The weights of role ``model`` as plain numbers, and the quantization that is undone on the way, if any.

    A weight is dequantized from several tensors that lie apart, so a quantized model that is virtual is written to
    scratch. RefusedInput: E-NONFINITE with ``finite``, E-QUANTIZED for a checkpoint that cannot be dequantized.
    """
    weights = open_input(given, "model", progress, finite=finite)
    if not read_config(weights.folder).get("quantization_config"):
        return weights, None
    given, passed = written(given, "model", progress)
    folder = given.one("model")
    source = CompressedSource(folder, expected_files(given, "model"))
    return Weights(source, folder, [RefuseNonFinite()] if finite else [], passed=passed), "compressed-tensors"


def form_of(weights: Weights, tokenizer: Any) -> LayoutForm:
    """How the model is laid out; its tensors get their GGUF names at the end of the chain. RefusedInput: E-GGUF-*."""
    config = read_config(weights.folder)
    layout = gguf_layout(config)
    weights.chain.append(layout.names())
    return LayoutForm(layout, vocabulary_fields(weights.folder, config, tokenizer))
