"""What cannot be said in a GGUF is refused by name, and so is a GGUF that says what its tensors do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archmodels import CASES, export, make_model, mapped
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.gguf.architectures import ALL
from ingot.kit.gguf.hf_view import GgufModel
from ingot.kit.gguf.layout import gguf_layout
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.rope import llama3_divisors
from ingot.kit.stream.vocabulary import Slot

LOCAL = {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(name, root / name, 320) for name in CASES}


@pytest.mark.parametrize(
    ("name", "change", "code", "what"),
    [
        ("llama", {"architectures": ["MambaForCausalLM"]}, "E-GGUF-ARCH", "MambaForCausalLM"),
        ("llama", {"architectures": None, "model_type": "mamba"}, "E-GGUF-ARCH", "model_type mamba"),
        ("llama", {"model_type": "mistral"}, "E-GGUF-ARCH", "LlamaForCausalLM"),
        ("llama", {"hidden_act": "gelu"}, "E-GGUF-ARCH", "hidden_act: 'gelu'"),
        ("llama", {"hidden_size": "many"}, "E-GGUF-ARCH", "no number"),
        ("llama", {"num_key_value_heads": 3}, "E-GGUF-ARCH", "do not divide"),
        ("llama", {"vocab_size": 0}, "E-GGUF-ARCH", "vocab_size is 0"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "E-GGUF-ROPE", "'dynamic'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "E-GGUF-ROPE", "only a part"),
        ("smollm3", {"rope_parameters": CASES["llama-3.1"].changes["rope_parameters"]}, "E-GGUF-ROPE", "'llama3'"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "E-GGUF-ARCH", "no_rope_layers"),
        ("smollm3", {"attention_bias": True}, "E-GGUF-ARCH", "attention_bias"),
        ("qwen3", {"attention_bias": True}, "E-GGUF-ARCH", "attention_bias"),
        ("qwen2-yarn", {"rope_parameters": {"attention_factor": 2.0}}, "E-GGUF-ROPE", "attention factor 2.0"),
        ("qwen2-yarn", {"rope_parameters": {"mscale": 1.0, "mscale_all_dim": 1.0}}, "E-GGUF-ROPE", "mscale"),
        ("qwen2-yarn", {"rope_parameters": {"truncate": False}}, "E-GGUF-ROPE", "truncation"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "E-GGUF-ARCH", "query_pre_attn_scalar: 16"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "E-GGUF-ARCH", "layer_types"),
        ("gemma2", {"attn_logit_softcapping": None}, "E-GGUF-ARCH", "attn_logit_softcapping"),
        ("gemma2", {"rope_parameters": {"rope_theta": 5000.0}}, "E-GGUF-ROPE", "the base 5000"),
        ("gemma2", {"tie_word_embeddings": False}, "E-GGUF-ARCH", "tie_word_embeddings"),
        ("gemma3", {"use_bidirectional_attention": True}, "E-GGUF-ARCH", "use_bidirectional_attention"),
        ("gemma3", {"rope_parameters": LOCAL}, "E-GGUF-ROPE", "with a window"),
        ("phi3-longrope", {"rope_parameters": {"factor": 3.0}}, "E-GGUF-ROPE", "factor 3"),
        ("phi3-longrope", {"rope_parameters": {"attention_factor": 3.0}}, "E-GGUF-ROPE", "attention factor 3"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "E-GGUF-ARCH", "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused_by_name(
    name: str, change: dict[str, Any], code: str, what: str, models: Mapping[str, Path]
) -> None:
    config = hf.read_config(models[name])
    if rope := change.get("rope_parameters"):
        change = {"rope_parameters": {**config["rope_parameters"], **rope}}
    with pytest.raises(RefusedInput, match=what) as caught:
        gguf_layout({**config, **change}).fields(0, 1)
    assert caught.value.code == code


WINDOW = "attends to all positions, transformers to the last {}: they agree up to that length"
SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "layer_types": None}


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("mistral-window", {}, WINDOW.format(24)),
        ("mistral-window", {"sliding_window": 128}, ""),  # as long as the context
        ("mistral", {}, ""),
        ("phi3-partial", {}, WINDOW.format(24)),
        ("qwen2", SLIDING, WINDOW.format(24)),
        ("qwen3", SLIDING, WINDOW.format(24)),
        ("qwen2", {**SLIDING, "max_window_layers": 2}, ""),  # no layer has it
        ("qwen2", {**SLIDING, "use_sliding_window": False}, ""),
        ("llama", {"sliding_window": 24}, ""),  # transformers does not heed it
        ("gemma2", {}, ""),  # llama.cpp knows it
        ("gemma3", {}, ""),
        ("phi3-longrope", {}, "once its context is longer than 256, transformers once a text is"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_said(
    name: str, change: dict[str, Any], what: str, models: Mapping[str, Path]
) -> None:
    limits = gguf_layout({**hf.read_config(models[name]), **change}).limits()
    assert len(limits) == bool(what)
    assert all(what in limit for limit in limits)


def test_an_unknown_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(RefusedInput) as caught:
        gguf_layout({"architectures": ["RwkvForCausalLM"]})
    assert all(each.model in str(caught.value) for each in ALL)
    assert "converter" in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_other_tensors_than_its_own_is_refused(name: str, models: Mapping[str, Path]) -> None:
    layout = gguf_layout(hf.read_config(models[name]))
    tensors = dict(hf.iter_tensors(models[name]))
    last = max(key for key in tensors if key.endswith("weight") and ".1." in key)
    refused(layout.names(), {key: tensor for key, tensor in tensors.items() if key != last}, "lacks 1 tensors")
    refused(layout.names(), {**tensors, f"{last}.more": tensors[last]}, "does not have")
    refused(layout.names(), {**tensors, last: tensors[last][..., :-1]}, "has the shape")


def test_names_that_hold_no_weights_are_skipped_and_prefixes_may_be_left_out(models: Mapping[str, Path]) -> None:
    tensors = dict(hf.iter_tensors(models["gpt2"]))
    layout = gguf_layout(hf.read_config(models["gpt2"]))
    bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    more = {**bare, "h.0.attn.bias": torch.ones(1, 1, 128, 128), "h.1.attn.masked_bias": torch.zeros(1)}
    assert mapped(layout.names(), more).keys() == mapped(layout.names(), tensors).keys()
    refused(layout.names(), {**tensors, **bare}, "twice")


def refused(names: Any, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    with pytest.raises(RefusedInput, match=what) as caught:
        mapped(names, tensors)
    assert caught.value.code == "E-GGUF-TENSOR"


def test_of_no_other_model_is_anything_said(models: Mapping[str, Path]) -> None:
    limited = {name for name in CASES if gguf_layout(hf.read_config(models[name])).limits()}
    assert limited == {"mistral-window", "phi3-partial", "phi3-longrope"}


def test_what_a_map_does_is_told_by_its_identity(models: Mapping[str, Path]) -> None:
    """Equal identities on equal bytes give equal bytes; none ("") means that the bytes pass."""
    seen: dict[tuple[str, tuple[int, ...]], bytes] = {}
    for name in CASES:
        layout = gguf_layout(hf.read_config(models[name]))
        for key, tensor in hf.iter_tensors(models[name]):
            slot = Slot(key, tuple(tensor.shape), "F32")
            probe = torch.arange(slot.elements, dtype=torch.float32).reshape(slot.shape)
            for route in layout.names().routes(slot):
                assert route.identity is not None
                data = route.apply(probe, 0).contiguous().numpy().tobytes()
                assert (data == probe.numpy().tobytes()) == (route.identity == ""), key
                assert seen.setdefault((route.identity, slot.shape), data) == data
    # nothing, transposed, plus one, and pairs in heads of 16, 24 and 32 rows
    assert len({identity for identity, _ in seen}) == 6


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        ("gemma3", {"gemma3.attention.sliding_window": None}, "E-GGUF-KEY"),
        ("gemma3", {"gemma3.attention.value_length": 16}, "E-GGUF-KEY"),
        ("qwen3", {"qwen3.attention.head_count": 3}, "E-GGUF-TENSOR"),
        ("qwen3", {"qwen3.attention.head_count_kv": 3}, "E-GGUF-KEY"),
        ("qwen3", {"qwen3.attention.head_count": [4, 4]}, "E-GGUF-KEY"),
        ("qwen3", {"qwen3.block_count": 3}, "E-GGUF-TENSOR"),
        ("qwen3", {"qwen3.block_count": 1}, "E-GGUF-TENSOR"),
        ("qwen3", {"qwen3.rope.scaling.type": "longrope"}, "E-GGUF-ROPE"),
        ("gemma2", {"gemma2.expert_count": 8}, "E-ARCH"),
        ("gemma2", {"gemma2.rope.dimension_count": 16}, "E-ARCH"),
        ("gemma2", {"general.architecture": "gemma"}, "E-ARCH"),
        ("gemma2", {"split.count": 2}, "E-GGUF-SPLIT"),
        ("phi3-longrope", {"phi3.rope.scaling.attn_factor": 3.0}, "E-GGUF-ROPE"),
        ("gpt2", {"gpt2.feed_forward_length": 128}, "E-GGUF-TENSOR"),
    ],
)
def test_a_gguf_that_says_something_else_than_its_tensors_is_refused(
    name: str, fault: dict[str, Any], code: str, models: Mapping[str, Path], tmp_path: Path
) -> None:
    gguf = read_gguf(export(models[name], tmp_path / "x.gguf", "F32"))
    GgufModel(gguf)
    metadata = {key: value for key, value in {**gguf.metadata, **fault}.items() if value is not None}
    with pytest.raises(RefusedInput) as caught:
        GgufModel(replace(gguf, metadata=metadata))
    assert caught.value.code == code


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head", [64, 128])
def test_the_divisors_of_llama_3_are_those_of_transformers(factor: float, head: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    numbers = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=2 * head, num_attention_heads=2, rope_parameters=numbers)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    torch.testing.assert_close(plain / llama3_divisors(500000.0, numbers, head), wanted, rtol=1e-6, atol=0)
