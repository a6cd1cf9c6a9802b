"""The shape of a Llama is read from config.json, in the words of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.errors import RefusedInput
from ingot.kit.decoder.shape import Rope, decoder_shape

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip


def test_defaults_are_those_of_transformers() -> None:
    shape = decoder_shape(BASE, "E-X")
    assert (shape.kv_heads, shape.head_dim, shape.context, shape.eps, shape.tied) == (4, 16, 2048, 1e-6, False)
    assert shape.rope == Rope(10000.0, "default")
    assert not shape.explicit_head_dim


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
)
def test_llama3_scaling_equals_transformers(config: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = decoder_shape({**BASE, **config}, "E-X").rope
    divisors = rope.divisors(16)
    assert divisors is not None
    reference = LlamaConfig(
        **{**BASE, "max_position_embeddings": 2048, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    )
    wanted, factor = ROPE_INIT_FUNCTIONS["llama3"](reference, torch.device("cpu"))
    own = 1.0 / 5e5 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16) / torch.tensor(divisors)
    assert factor == 1.0
    torch.testing.assert_close(own, wanted)
    assert len(set(divisors)) > 2  # kept, divided and in between are all present


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architectures": ["GPTBigCodeForCausalLM"]}, "architecture GPTBigCodeForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "model_type mamba"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        # transformers obeys the older name where both are there
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor'"),
        ({"vocab_size": "many"}, "many"),
        ({"num_key_value_heads": 3}, "key-value heads"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, Any], what: str) -> None:
    with pytest.raises(RefusedInput, match=what) as caught:
        decoder_shape({**BASE, **change}, "E-GGUF-ARCH")
    assert caught.value.code == "E-GGUF-ARCH"
