"""A checkpoint's weights in the decoder's modules, and the proof that it then computes what transformers computes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ingot.errors import RefusedInput, StageFailed
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


def compare_with_transformers(module: Decoder, folder: Path, length: int, code: str) -> float:
    """The largest difference of the fp32 logits from transformers' on ``length`` random ids.

    StageFailed (``code``) when it is more than the order of sums explains.
    """
    ids = torch.randint(module.shape.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    wanted = _reference_logits(folder, ids)
    with torch.no_grad():
        found = module(ids.to(torch.int32), places(module.shape, length))
    difference = float((found - wanted).abs().max())
    # both compute in fp32 and differ in the order of sums only
    allowed = 1e-3 * max(1.0, float(wanted.abs().max()))
    if not difference <= allowed:
        raise StageFailed(
            code,
            "the module to convert does not compute what transformers computes",
            facts=[f"largest difference of the logits {difference:.3g}, allowed {allowed:.3g}"],
        )
    return difference


def _reference_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    from ingot.kit.hf import load_model

    # in its own type first, so that compressed weights are rounded as the checkpoint's users get them
    reference = load_model(model).float()
    # The export computes with plain inputs; W8A8 and FP8 round them, too, which is no matter of weights.
    for module in reference.modules():
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False
    with torch.no_grad():
        logits: torch.Tensor = reference(input_ids=ids, use_cache=False).logits.float()
    return logits
