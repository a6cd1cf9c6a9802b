"""An ``onnx`` artifact from a model's folder: convert, optimize, check, say what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import checker

from ingot.core.stage import Progress
from ingot.errors import RefusedInput, StageFailed
from ingot.kit.backends.onnx import port_of
from ingot.kit.contract import Contract, Tensor, ship_tokenizer, write_contract
from ingot.kit.decoder.shape import DecoderShape, decoder_shape
from ingot.kit.hf import read_config, tensor_names
from ingot.kit.onnx_model import files
from ingot.kit.onnx_model.convert import Settings, bytes_by_type, convert
from ingot.kit.onnx_model.optimize import optimize
from ingot.kit.onnx_model.quantize import Plan, refuse_blocks
from ingot.kit.onnx_model.read import read_model
from ingot.kit.quant.plain import iter_plain_tensors


@dataclass(frozen=True)
class Wishes:
    """What is asked for beyond the model itself: its limit of tokens (None: the model's), and who optimizes."""

    settings: Settings
    context: int | None
    optimization: Literal["none", "basic", "extended"]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """What was written: sizes, nodes, stored bytes by type."""

    bytes: int
    parameters: int
    nodes: int
    weight_bytes: Mapping[str, int]


def export(model: Path, out: Path, scratch: Path, wishes: Wishes, progress: Progress) -> Facts:
    """Write ``model.onnx``, its weights, the tokenizer and ``contract.json``.

    RefusedInput: E-ONNX-ARCH, E-ONNX-LENGTH, E-ONNX-TENSOR, E-ONNX-RANGE, E-ONNX-BLOCK, E-TOKENIZER; StageFailed:
    E-ONNX-EXPORT, E-ONNX-OPTIMIZE, E-ONNX-SELFCHECK.
    """
    config = read_config(model)
    shape = decoder_shape(config, "E-ONNX-ARCH")
    refuse(shape, wishes.context, wishes.settings.quantization)
    tokenizer = ship_tokenizer(model, out)
    plain = wishes.optimization == "none"
    target = out if plain else scratch
    source = shape, dict.fromkeys(tensor_names(model))
    proto, parameters = convert(source, iter_plain_tensors(model), wishes.settings, (target, scratch), progress)
    files.save(proto, target, () if not plain else wishes.metadata.items())
    if wishes.optimization != "none":
        progress.phase("optimize")
        check(target, strict=True)
        proto = optimize(target, out, wishes.optimization, outside=wishes.settings.outside)
        files.save(proto, out, wishes.metadata.items())
    progress.phase("check")
    check(out, strict=wishes.optimization != "extended")
    contract = _contract(proto, shape, wishes, (str(config["architectures"][0]), parameters, tokenizer))
    write_contract(out, contract)
    size = sum((out / name).stat().st_size for name in (files.MODEL, files.DATA) if (out / name).exists())
    return Facts(size, parameters, len(proto.graph.node), bytes_by_type(proto))


def refuse(shape: DecoderShape, length: int | None, plan: Plan | None) -> None:
    """Refuse what a shape cannot be before anything runs: E-ONNX-LENGTH for texts longer than the model's context;
    E-ONNX-BLOCK for blocks that do not divide the inputs of every matrix."""
    if length is not None and length > shape.context:
        raise RefusedInput(
            "E-ONNX-LENGTH",
            f"max_length {length} is above the model's context of {shape.context} tokens",
            hint=f"set max_length to at most {shape.context}, or leave it out: then it is that",
        )
    if plan is not None and plan.blocks:
        inputs = {"o_proj": shape.heads * shape.head_dim, "down_proj": shape.feed_forward, "lm_head": shape.hidden}
        refuse_blocks({"q_proj": shape.hidden, **inputs}, plan.block)


def check(folder: Path, *, strict: bool) -> None:
    """Read the saved model back: ONNX's own checker with the shapes of all values, and where the weights lie.

    ``strict`` False leaves the checker out: ONNX Runtime's extended fusions put operators of its own among ONNX's,
    which it does not know. StageFailed (E-ONNX-SELFCHECK) when something is wrong.
    """
    try:
        read_model(folder)
        if strict:
            checker.check_model(str(folder / files.MODEL), full_check=True)
    except (RefusedInput, checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageFailed("E-ONNX-SELFCHECK", f"the saved model is not sound: {str(error).strip()[:500]}") from error


def _contract(proto: onnx.ModelProto, shape: DecoderShape, wishes: Wishes, about: tuple[str, int, Any]) -> Contract:
    settings, (architecture, parameters, tokenizer) = wishes.settings, about
    plan = settings.quantization
    precision = settings.precision if plan is None else plan.scheme.removesuffix("_dynamic")
    details: dict[str, Any] = {
        "opset": settings.opset,
        "optimization": wishes.optimization,
        "quantization": "none" if plan is None else plan.scheme,
        "kv_cache": settings.cached,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
    }
    if plan is not None and plan.blocks:
        details |= {"block_size": plan.block, "products": "int8" if plan.level else settings.precision}
    return Contract(
        container="onnx",
        architecture=architecture,
        layers=shape.layers,
        parameters=parameters,
        precision=precision,
        compute=settings.precision,
        inputs=tuple(Tensor(*port_of(value)) for value in proto.graph.input),
        outputs=tuple(Tensor(*port_of(value)) for value in proto.graph.output),
        tokenizer=tokenizer,
        limits={"context": wishes.context or shape.context},
        details=details,
    )
