"""A checkpoint's weights by name, plain and one at a time, and the module that stands in for it while it is traced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ingot.errors import RefusedInput
from ingot.kit.coreml.settings import Precision, Settings
from ingot.kit.decoder.build import extras_of
from ingot.kit.decoder.layers import Decoder, Form, Plan
from ingot.kit.decoder.shape import DecoderShape
from ingot.kit.quant.plain import Plain, plain_weights

_TENSOR = "E-COREML-TENSOR"


class Checkpoint:
    """The weights of a model folder under the names of ``Decoder``; quantized ones are dequantized when asked for."""

    def __init__(self, folder: Path, shape: DecoderShape) -> None:
        """RefusedInput (E-QUANTIZED, E-ST-…) for a folder that cannot be read; headers only are read."""
        self._weights: dict[str, tuple[str, Plain]] = {}
        for name, weight in plain_weights(folder).items():
            own = name.removeprefix("model.")
            if not name.endswith("rotary_emb.inv_freq") and not (shape.tied and own == "lm_head.weight"):
                self._weights[own] = name, weight
        self.shapes = {name: weight.shape for name, (_, weight) in self._weights.items()}

    def matrices(self) -> Iterator[str]:
        """The names of the weights that are matrices, embeddings included."""
        return (name for name, sizes in self.shapes.items() if len(sizes) == 2)

    def original(self, name: str) -> str:
        """The name of a weight in the folder."""
        return self._weights[name][0]

    @property
    def parameters(self) -> int:
        """The number of weights; tied ones are stored once."""
        return sum(math.prod(sizes) for sizes in self.shapes.values())

    def load(self, name: str, precision: Precision) -> npt.NDArray[Any]:
        """A weight, rounded to what computes. RefusedInput (E-COREML-RANGE) when that cannot hold it."""
        original, weight = self._weights[name]
        tensor = weight.read()
        rounded = tensor.to(torch.float16 if precision == "float16" else torch.float32)
        if not bool(torch.isfinite(rounded).all()):
            largest = "65,504" if precision == "float16" else "what float32 holds"
            raise RefusedInput(
                "E-COREML-RANGE",
                f"{original} holds a value that is no finite {precision}",
                facts=[f"the largest magnitude that can be stored is {largest}"],
                hint="compute_precision: float32 holds the weights of any checkpoint that is finite",
            )
        return rounded.numpy()  # type: ignore[no-any-return]  # torch is Any to mypy here


def stand_in(shape: DecoderShape, checkpoint: Checkpoint, precision: Precision) -> Decoder:
    """The decoder with a checkpoint's vectors, and matrices that take no memory until they are written to.

    Each matrix begins with digits of its own: whoever looks for equal constants finds none. The program is converted
    with these, and the weights go into the saved file one by one. RefusedInput (E-COREML-TENSOR): they do not fit.
    """
    kind = np.dtype(precision)
    state = {}
    for index, (name, sizes) in enumerate(checkpoint.shapes.items()):
        value = blank(sizes, kind, index) if len(sizes) == 2 else checkpoint.load(name, precision)
        state[name] = torch.from_numpy(value)
    if shape.tied and "embed_tokens.weight" in state:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    with torch.device("meta"):
        module = Decoder(Plan(shape, Form(), extras_of(state)))
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        facts = [line.strip() for line in str(error).splitlines()[1:6]]
        raise RefusedInput(_TENSOR, "the weights do not fit the configuration", facts=facts) from error
    module.eval().requires_grad_(requires_grad=False)
    return module.half() if precision == "float16" else module


def blank(sizes: tuple[int, ...], kind: np.dtype[Any], index: int) -> npt.NDArray[Any]:
    """Zeros but for the first numbers, which are the digits of ``index`` to the base of seven, plus one each."""
    value = np.zeros(sizes, kind)
    digits = [index // 7**place % 7 + 1 for place in range(8)]
    value.reshape(-1)[: len(digits)] = digits[: value.size]
    return value


def refuse_blocks(checkpoint: Checkpoint, settings: Settings) -> None:
    """RefusedInput (E-COREML-BLOCK) naming the first matrix that blocks do not divide."""
    axis = 1 if settings.weights == "int4" else 0
    shared = math.gcd(*(checkpoint.shapes[name][axis] for name in checkpoint.matrices()))
    for name in checkpoint.matrices() if settings.block else ():
        size = checkpoint.shapes[name][axis]
        if size % settings.block:
            what = ("a row", "weights") if axis else ("the matrix", "rows")
            raise RefusedInput(
                "E-COREML-BLOCK",
                f"blocks of {settings.block} do not divide {checkpoint.original(name)}",
                facts=[f"{what[0]} has {size} {what[1]}"],
                hint=f"set block_size to a divisor of {shared}, which divide all matrices"
                + ("" if axis else ", or leave it out: then a tensor has one table"),
            )
