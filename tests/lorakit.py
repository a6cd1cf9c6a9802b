"""Adapters of every kind that PEFT makes, merged three ways: by ingot, by PEFT, and by PEFT in float64 (the truth)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ingot.kit import hf
from ingot.kit.lora.combine import Combine, combine
from ingot.kit.lora.merge import LoraMerge, Options
from ingot.kit.lora.read import read_adapter
from ingot.kit.stream.vocabulary import Slot
from tinymodels import llama, peft_adapter, state

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
#: Explicit bits of the fraction.
FRACTION = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
SMALLEST = {torch.bfloat16: -133, torch.float16: -24, torch.float32: -149}


@dataclass(frozen=True)
class Case:
    """One kind of adapter: how PEFT makes it, over which model."""

    options: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    gpt2: bool = False

    def model(self) -> Any:
        """The base, the same at every call."""
        return gpt2(**self.base) if self.gpt2 else llama(**self.base)


def gpt2(**changes: Any) -> Any:
    """A random GPT-2 of two layers: Conv1D matrices, biases, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "attn_implementation": "eager", **changes})).eval()


Q = {"target_modules": ["q_proj", "up_proj"]}
#: Every case of PEFT's LoRA that a merge supports.
CASES: dict[str, Case] = {
    "lora": Case({}),
    "rslora": Case({"use_rslora": True}),
    "patterns": Case(
        {"rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\..*": 7}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}
    ),
    "rslora-patterns": Case({"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}),
    "dora": Case({"use_dora": True}),
    "dora-rslora": Case({"use_dora": True, "use_rslora": True}),
    "embedding": Case({"target_modules": ["embed_tokens", "q_proj"]}),
    "dora-embedding": Case({"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "lm-head": Case({"target_modules": ["lm_head", "q_proj"]}),
    "modules-to-save": Case({**Q, "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]}),
    "bias-all": Case({**Q, "bias": "all"}, {"attention_bias": True}),
    "bias-lora-only": Case({**Q, "bias": "lora_only"}, {"attention_bias": True}),
    "lora-bias": Case({"target_modules": ["q_proj", "o_proj"], "lora_bias": True}, {"attention_bias": True}),
    "tokens": Case({**Q, "trainable_token_indices": [1, 5, 90]}),
    "tokens-of-both": Case({**Q, "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [3]}}),
    "some-layers": Case({**Q, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "exclude": Case({"target_modules": "all-linear", "exclude_modules": ["k_proj"]}),
    "fan-in-fan-out": Case({"target_modules": ["c_attn", "c_proj", "c_fc"]}, gpt2=True),
    "dora-fan-in-fan-out": Case({"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}, gpt2=True),
    "lora-bias-conv1d": Case({"target_modules": ["c_attn", "c_proj"], "lora_bias": True}, gpt2=True),
    "mica": Case({**Q, "init_lora_weights": "mica"}),
    "orthogonal": Case({**Q, "init_lora_weights": "orthogonal"}),
    "velora": Case({**Q, "velora_config": {"num_groups": 4}}),
    "monteclora": Case({**Q, "monteclora_config": {}}),
}
TIED = {"tie_word_embeddings": True}
#: Over a model whose embeddings are one tensor, which PEFT's merge changes for both.
TIED_CASES: dict[str, Case] = {
    "tied-embedding": Case({"target_modules": ["embed_tokens", "q_proj"]}, TIED),
    "tied-lm-head": Case({"target_modules": ["lm_head", "q_proj"]}, TIED),
    "tied-both": Case({"target_modules": ["lm_head", "embed_tokens"]}, TIED),
    "tied-saved-embedding": Case({**Q, "modules_to_save": ["embed_tokens"]}, TIED),
    "tied-gpt2": Case({"target_modules": ["wte", "c_attn"]}, gpt2=True),
    "tied-gpt2-head": Case({"target_modules": ["lm_head", "c_proj"]}, gpt2=True),
}
#: Trained as tied: they stay so.
KEPT_TIED: dict[str, Case] = {
    "kept-embedding": Case({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, TIED),
    "kept-saved": Case({**Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, TIED),
    "kept-tokens": Case({**Q, "trainable_token_indices": [1, 5]}, TIED),
}


def prepare(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Save the base in ``dtype`` and an adapter with random matrices; returns their folders."""
    from peft import MontecloraConfig, VeloraConfig

    made = {"velora_config": VeloraConfig, "monteclora_config": MontecloraConfig}
    options = {name: made[name](**value) if name in made else value for name, value in case.options.items()}
    base, adapter = folder / "base", folder / "adapter"
    case.model().to(dtype).save_pretrained(base)
    peft_adapter(hf.load_model(base), adapter, **options)
    return base, adapter


def by_peft(base: Path, adapter: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """What PEFT's ``merge_and_unload`` makes of an adapter read from its folder; all in ``dtype`` if one is given."""
    merged = loaded(base, adapter, dtype).merge_and_unload()
    found: dict[str, torch.Tensor] = merged.state_dict()
    return found


def loaded(base: Path, adapter: Path, dtype: torch.dtype | None = None) -> Any:
    """The base with the adapter beside its weights."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(hf.load_model(base), adapter).eval()
    return wrapped if dtype is None else wrapped.to(dtype)


def by_ingot(base: Path, *adapters: Path, rows: int = 10**9, **more: Any) -> dict[str, torch.Tensor]:
    """What the transform makes of a base, in blocks of about ``rows`` rows (multiples of what a route asks for)."""
    weights: Any = more.pop("weights", (1.0,) * len(adapters))
    how: Combine = more.pop("how", "linear")
    conv1d = json.loads((base / "config.json").read_text())["model_type"] == "gpt2"
    change = combine([read_adapter(folder) for folder in adapters], weights, how)
    return flow(LoraMerge(change, Options(**{"conv1d": conv1d, **more})), state(base), rows)


def flow(merge: LoraMerge, tensors: Mapping[str, torch.Tensor], rows: int = 10**9) -> dict[str, torch.Tensor]:
    """Drive a transform over tensors in memory: blocks of ``rows`` rows where a route allows it."""
    slots = [Slot(name, tuple(tensor.shape), NAMES[tensor.dtype]) for name, tensor in tensors.items()]
    merge.begin(slots)
    found = {}
    for slot in slots:
        for route in merge.routes(slot):
            tensor = tensors[slot.name]
            step = slot.rows if route.whole else max(route.grain, rows // route.grain * route.grain)
            parts = [route.apply(tensor[at : at + step], at) for at in range(0, slot.rows, step)]
            found[route.slot.name] = torch.cat(parts)
            assert route.slot.dtype == NAMES[found[route.slot.name].dtype]
    merge.finish()
    return found


def unit(truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place that ``dtype`` has at each value."""
    exponent = torch.frexp(truth.double()).exponent - 1
    return torch.exp2((exponent - FRACTION[dtype]).clamp(min=SMALLEST[dtype]).double())


def ulps(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest distance from the truth, in units in the last place of ``found``'s dtype."""
    return float(((found.double() - truth.double()).abs() / unit(truth, found.dtype)).max())


def beyond(found: torch.Tensor, truth: torch.Tensor) -> float:
    """By how much the distance from the truth exceeds half a unit in the last place, over the largest value."""
    rest = (found.double() - truth.double()).abs() - unit(truth, found.dtype) / 2
    return float(rest.max() / truth.abs().max())
