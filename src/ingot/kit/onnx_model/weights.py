"""A checkpoint's weights as the graph reads them, one at a time: nothing holds the model.

A tensor may become two: a model whose output layer is the embedding has it twice where the two are stored differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ingot.errors import RefusedInput
from ingot.kit.decoder.layers import rope_frequencies
from ingot.kit.decoder.shape import DecoderShape

#: Type and sizes of each weight that a graph reads.
Wanted = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

EMBEDDING, HEAD, FREQUENCIES = "embed_tokens.weight", "lm_head.weight", "frequencies"


@dataclass(frozen=True)
class Source:
    """The tensor of a checkpoint that a weight of the graph is, and whether it lies there the other way round."""

    name: str
    turned: bool


def source(weight: str, shape: DecoderShape) -> Source:
    """Where a weight comes from."""
    if weight == HEAD and shape.tied:
        return Source(EMBEDDING, turned=True)
    return Source(weight, turned=weight == HEAD or weight.endswith("_proj.weight"))


def stream(
    tensors: Iterable[tuple[str, torch.Tensor]], wanted: Wanted, shape: DecoderShape
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the graph, in the order of the checkpoint.

    RefusedInput: E-ONNX-TENSOR when the checkpoint lacks one, has one of another shape or one too many; E-ONNX-RANGE
    for numbers that are not finite in the type that they are stored in.
    """
    yield FREQUENCIES, rope_frequencies(shape.rope, shape.head_dim)
    left = {weight: what for weight, what in wanted.items() if weight != FREQUENCIES}
    for full_name, tensor in tensors:
        name = full_name.removeprefix("model.")
        if name.endswith("rotary_emb.inv_freq"):
            continue
        # of a tied model the output layer, where the checkpoint holds one too, is the embedding again
        found = [weight for weight in left if source(weight, shape).name == name]
        if not found and not (name == HEAD and shape.tied):
            raise RefusedInput("E-ONNX-TENSOR", f"the model holds {full_name!r}, which such a decoder does not have")
        for weight in found:
            dtype, sizes = left.pop(weight)
            turned = source(weight, shape).turned
            yield weight, _placed(full_name, tensor.T if turned else tensor, dtype, sizes)
    if left:
        raise RefusedInput(
            "E-ONNX-TENSOR", f"the model lacks {min(left)!r}", facts=[f"{len(left)} weights are missing"]
        )


def _placed(name: str, tensor: torch.Tensor, dtype: torch.dtype, sizes: tuple[int, ...]) -> torch.Tensor:
    if tuple(tensor.shape) != sizes:
        raise RefusedInput(
            "E-ONNX-TENSOR", f"{name!r} has the shape {tuple(tensor.shape)} where the configuration says {sizes}"
        )
    stored = tensor.to(dtype).contiguous()
    if not torch.isfinite(stored).all():
        raise RefusedInput(
            "E-ONNX-RANGE",
            f"{name!r} holds numbers that are not finite as {str(dtype).removeprefix('torch.')}",
            hint="'precision: float32' holds what the model holds; weights that are NaN there are broken",
        )
    return stored
