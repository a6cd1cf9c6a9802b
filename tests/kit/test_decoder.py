"""The hand-written decoder computes what transformers computes, for every architecture, in one go and with a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import make_tokenizer

from ingot.kit.decoder.build import build_decoder, places
from ingot.kit.decoder.layers import HIDDEN, Decoder, Form, Place, rope_tables
from ingot.kit.decoder.shape import decoder_shape
from ingot.kit.hf import iter_tensors, read_config
from ingot.kit.parity.reference import SourceModel

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True},
    "Mistral": {"sliding_window": 48},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 8},
}


def make_model(folder: Path, architecture: str, **more: Any) -> Path:
    import transformers

    fields: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": make_tokenizer(folder), "max_position_embeddings": 128,
    }  # fmt: skip
    config = getattr(transformers, f"{architecture}Config")(**fields | ARCHITECTURES[architecture] | more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(str(folder))
    return folder


def decoder_of(folder: Path, form: Form) -> Decoder:
    shape = decoder_shape(read_config(folder), "E-X")
    return build_decoder(shape, iter_tensors(folder), form, "E-X")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("form", [Form(), Form(batched=True, scaled_norm=False)], ids=["one", "batched"])
def test_it_computes_what_transformers_computes(tmp_path: Path, architecture: str, form: Form) -> None:
    folder = make_model(tmp_path / "hf", architecture)
    decoder = decoder_of(folder, form)
    length = min(64, decoder.shape.context)
    ids = torch.randint(decoder.shape.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    with SourceModel(folder, threads=1) as source:
        wanted = source.trace(ids[0].tolist(), probes=False).logits
    with torch.no_grad():
        found = decoder(ids.int(), places(decoder.shape, length))[0]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-4)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "hf", "Mistral")
    assert decoder_of(folder, Form()).shape.context == 48
    assert decoder_of(make_model(tmp_path / "whole", "Mistral", sliding_window=None), Form()).shape.context == 128


class _Kept:
    """A cache that keeps everything."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.kept:
            before = self.kept[layer]
            keys, values = torch.cat((before[0], keys), dim=2), torch.cat((before[1], values), dim=2)
        self.kept[layer] = keys, values
        return keys, values


def test_token_by_token_with_a_cache_is_as_in_one_go(tmp_path: Path) -> None:
    decoder = decoder_of(make_model(tmp_path / "hf", "Qwen3"), Form(batched=True))
    ids = torch.randint(decoder.shape.vocabulary, (3, 12), generator=torch.Generator().manual_seed(1))
    whole = decoder(ids, places(decoder.shape, 12))
    cos, sin = rope_tables(decoder.shape.rope, decoder.shape.head_dim, 12)
    cache, found = _Kept(), []
    for at in range(12):
        mask = torch.zeros(1, at + 1)
        found.append(decoder(ids[:, at : at + 1], Place(cos[at : at + 1], sin[at : at + 1], mask, cache)))
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert HIDDEN < -1e3
