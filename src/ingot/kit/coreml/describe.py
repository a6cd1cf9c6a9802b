"""``contract.json`` of a Core ML package."""

from __future__ import annotations

from typing import Any

from ingot.kit.contract import Contract, Tensor, Tokenizer
from ingot.kit.coreml.convert import Model
from ingot.kit.coreml.settings import INPUT, KEYS, OUTPUT, POSITION, VALUES, Lengths

#: The size of an axis that is the number of tokens of a call.
TOKENS = "tokens"

_PADDING = "fill up with any ids after the text: no position sees what comes after it"


def contract(model: Model, architecture: str, tokenizer: Tokenizer, compute_units: str) -> Contract:
    """What a program needs to run the package: Core ML itself keeps no compute units and no tokenizer."""
    settings, shape = model.settings, model.shape
    inputs = [Tensor(INPUT, "int32", (1, TOKENS))]
    if settings.context:
        inputs.append(Tensor(POSITION, "int32", (1,)))
    details: dict[str, Any] = {
        "package": "model.mlpackage",
        "functions": {name: {"tokens": _tokens(lengths)} for name, lengths in settings.functions.items()},
        "default_function": next(iter(settings.functions)),
        "minimum_deployment_target": settings.target,
        "compute_units": compute_units,
        "padding": _PADDING,
    }
    if settings.context:
        sizes = [shape.layers, shape.kv_heads, settings.context, shape.head_dim]
        details["states"] = {name: {"dtype": "float16", "shape": sizes} for name in (KEYS, VALUES)}
        details["position"] = "how many tokens the state holds that precede those of this call; 0 begins a text"
    if settings.block:
        details["block_size"] = settings.block
    return Contract(
        container="coreml",
        architecture=architecture,
        layers=shape.layers,
        parameters=model.checkpoint.parameters,
        precision=settings.weights,
        compute=settings.precision,
        inputs=tuple(inputs),
        outputs=(Tensor(OUTPUT, settings.precision, (1, TOKENS, shape.vocabulary)),),
        tokenizer=tokenizer,
        limits={"context": settings.context or settings.lengths.most, "batch": 1, "model_context": shape.context},
        details=details,
    )


def _tokens(lengths: Lengths) -> list[int] | dict[str, int]:
    return list(lengths.listed) if lengths.listed else {"min": lengths.least, "max": lengths.most}
