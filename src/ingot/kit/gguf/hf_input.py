"""How a Hugging Face model is laid out for the exporter."""

from __future__ import annotations

from typing import Any

from ingot.kit.gguf.export import LayoutForm
from ingot.kit.gguf.layout import gguf_layout
from ingot.kit.gguf.vocab import vocabulary_fields
from ingot.kit.hf import read_config
from ingot.kit.stream.vocabulary import Weights


def form_of(weights: Weights, tokenizer: Any) -> LayoutForm:
    """How the model is laid out; its tensors get their GGUF names at the end of the chain. RefusedInput: E-GGUF-*."""
    config = read_config(weights.folder)
    layout = gguf_layout(config)
    weights.chain.append(layout.names())
    return LayoutForm(layout, vocabulary_fields(weights.folder, config, tokenizer))
