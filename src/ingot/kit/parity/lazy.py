"""A transformers model that holds no weights: each module reads its own when it runs, and lets them go.

What a forward pass takes is then the largest matrix and the activations, not the model; it costs reading the weights
anew for every text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: Weights by transformers' names, each read, as plain numbers, when it is asked for.
Readers = Mapping[str, Callable[[], torch.Tensor]]


class Lacking(LookupError):
    """Weights that a model's modules need and nothing reads; ``names``, in order."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def lazy_model(folder: Path, readers: Readers, *, untied: bool = False) -> Any:
    """The folder's model in fp32 and eval mode.

    ``untied``: its output layer has a matrix of its own, whatever config.json says. ``Lacking``: a weight of its
    modules is not among ``readers`` as it is (some architectures are stored under other names, or in other pieces,
    than transformers computes them in).
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    config.tie_word_embeddings = config.tie_word_embeddings and not untied
    # buffers (rotary frequencies, scales of embeddings) are computed from the config, and real
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    model.tie_weights()  # an empty parameter is a new one wherever it is put
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if missing := set(names.values()) - set(readers):
        raise Lacking(sorted(missing))
    for module in model.modules():
        own = {key: readers[names[id(value)]] for key, value in module.named_parameters(recurse=False)}
        if own:
            module.register_forward_pre_hook(partial(_fill, own), prepend=True)
            module.register_forward_hook(_empty)
    return model.eval()


def _fill(own: Readers, module: nn.Module, _inputs: object) -> None:
    for key, read in own.items():
        value = read().to(torch.float32)
        empty = getattr(module, key)
        if value.shape != empty.shape:
            value = value.reshape(empty.shape)
        setattr(module, key, nn.Parameter(value, requires_grad=False))


def _empty(module: nn.Module, _inputs: object, _output: object) -> None:
    for key, value in list(module.named_parameters(recurse=False)):
        setattr(module, key, nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False))
