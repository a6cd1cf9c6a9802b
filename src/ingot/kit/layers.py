"""Which weights of a model folder belong to linear layers, found without loading a weight."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.architectures import refuse_unknown_architecture

#: Written by a stage about its own result; not a property of the model, so never handed on.
_OWN_FILES = ("prune.json", "recover.json", "training.json")


def skeleton(folder: Path) -> Any:
    """The folder's model on the meta device: its modules and shapes, no memory for weights.

    RefusedInput (E-MODEL-ARCH) when transformers knows no causal language model for its config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_unknown_architecture(hf.read_config(folder))
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise RefusedInput(
            "E-MODEL-ARCH",
            "transformers can make no model of this config.json",
            facts=[" ".join(str(error).split())],
        ) from error


def linear_modules(model: Any) -> list[str]:
    """Names of the linear layers in the model's order, without the output embedding."""
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]


def linear_weights(folder: Path, names: Collection[str] | None = None) -> list[str]:
    """As ``linear_modules``, those whose ``.weight`` is among ``names`` (unless given, the tensors of the folder).

    RefusedInput (E-MODEL-ARCH) for a model that has no linear layers at all.
    """
    names = set(hf.tensor_names(folder) if names is None else names)
    model = skeleton(folder)
    linear = linear_modules(model)
    if not linear:
        raise no_linear(model)
    return [module for module in linear if f"{module}.weight" in names]


def embedding_weights(folder: Path, names: Collection[str]) -> list[str]:
    """The input and the output embedding, as far as their ``.weight`` is among ``names`` (a tied one is not)."""
    model = skeleton(folder)
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    found = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    return [module for module in found if f"{module}.weight" in names]


def four_bit_weights(folder: Path) -> frozenset[str]:
    """The weights that transformers' bitsandbytes loader quantizes by default: of every linear layer but the output.

    RefusedInput (E-MODEL-ARCH) for a model whose matrices are another kind of layer.
    """
    model = skeleton(folder)
    linear = [name for name in linear_modules(model) if type(model.get_submodule(name)) is torch.nn.Linear]
    if not linear:
        raise no_linear(model)
    return frozenset(f"{name}.weight" for name in linear)


def no_linear(model: Any) -> RefusedInput:
    """The refusal of a model without linear layers, such as GPT-2, whose matrices are another kind of layer."""
    return RefusedInput(
        "E-MODEL-ARCH",
        f"the architecture {model.config.model_type} is not supported here: it has no linear layers (torch.nn.Linear)",
        facts=["adapter, prune and quantize work on the linear layers of a model"],
        hint="use a model that has them: llama, mistral, qwen2, qwen3, gemma and most others do",
    )


def output_module(folder: Path) -> str | None:
    """The name of the output embedding (``lm_head``), if the model has one."""
    model = skeleton(folder)
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def refuse_quantized(folder: Path, what: str) -> None:
    """Refuse a model whose weights are quantized already (E-QUANTIZED)."""
    found = hf.read_config(folder).get("quantization_config")
    if found:
        raise RefusedInput(
            "E-QUANTIZED",
            f"{what} needs plain weights; this model is quantized already",
            facts=[f"quant_method: {found.get('quant_method')}"],
            hint="give it the model from before, or put 'kind: convert' between, which makes plain weights again",
        )


def copy_model_files(src: Path, out: Path, *, config: dict[str, Any] | None = None) -> None:
    """Everything but the weights, less what an earlier stage wrote about its own result."""
    hf.copy_side_files(src, out, config=config)
    for name in _OWN_FILES:
        (out / name).unlink(missing_ok=True)
