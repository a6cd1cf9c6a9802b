"""A checkpoint's weights in the decoder's modules."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ingot.errors import RefusedInput
from ingot.kit.decoder.layers import HIDDEN, Decoder, Extras, Form, Place, Plan, rope_tables
from ingot.kit.decoder.shape import DecoderShape

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_decoder(shape: DecoderShape, tensors: Iterable[tuple[str, torch.Tensor]], form: Form, code: str) -> Decoder:
    """The module with a checkpoint's weights in fp32. RefusedInput (``code``) when they do not fit."""
    state = {name: tensor.float() for name, tensor in tensors if not name.endswith("rotary_emb.inv_freq")}
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    if shape.tied:
        state.setdefault("lm_head.weight", state.get("embed_tokens.weight", torch.empty(0)))
    with torch.device("meta"):
        module = Decoder(Plan(shape, form, extras_of(state)))
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        facts = [line.strip() for line in str(error).splitlines()[1:6]]
        raise RefusedInput(code, "the weights do not fit the configuration", facts=facts) from error
    module.eval().requires_grad_(requires_grad=False)
    return module


def extras_of(names: Iterable[str]) -> Extras:
    """Which parts a checkpoint's layers have beyond Llama's, by the names of its tensors."""
    names = set(names)
    biased = {name for name in _PROJECTIONS if any(found.endswith(f".{name}.bias") for found in names)}
    return Extras(frozenset(biased), any(name.endswith(".self_attn.q_norm.weight") for name in names))


def places(shape: DecoderShape, length: int) -> Place:
    """The positions 0 … length - 1 of a text that nothing precedes."""
    cos, sin = rope_tables(shape.rope, shape.head_dim, length)
    return Place(cos, sin, torch.full((length, length), HIDDEN, device="cpu").triu(1))


def parameters(module: Decoder) -> int:
    """The number of weights, tied ones counted once."""
    return sum({weight.data_ptr(): weight.numel() for weight in module.parameters()}.values())
