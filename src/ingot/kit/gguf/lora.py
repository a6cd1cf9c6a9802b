"""A PEFT LoRA adapter as a GGUF that llama.cpp adds to a model while it runs.

For each adapted weight the file holds ``NAME.lora_a`` (rank × in) and ``NAME.lora_b`` (out × rank); llama.cpp adds
``alpha / rank · B·A`` with one alpha for the file and the rank of each pair (``llama_adapter_lora`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h). Names, order and bytes are those of
``convert_lora_to_gguf.py`` there, but for what docs/gguf-lora.md lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf.ggml import ggml
from ingot.kit.gguf.layout import Layout, Place
from ingot.kit.gguf.maps import Rotary
from ingot.kit.gguf.types import GGML_TYPES
from ingot.kit.gguf.writer import Field, TensorInfo, f32, text, u32, write_gguf
from ingot.kit.lora.config import LoraSettings
from ingot.kit.lora.read import Adapter, Factors

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EMBEDDING = "token_embd.weight"
#: A weight that differs from 1 by no more than rounding is 1: nothing is multiplied.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Half:
    """One of the two matrices of a pair as the file holds it: its name, its values, its type."""

    name: str
    rows: torch.Tensor
    type: str

    @property
    def info(self) -> TensorInfo:
        """Its entry in the table of tensors."""
        return TensorInfo(self.name, tuple(self.rows.shape), self.type)

    def encoded(self) -> memoryview:
        """Its bytes. RefusedInput: E-NONFINITE, or E-GGUF-NONFINITE for values beyond the type."""
        if not torch.isfinite(self.rows).all():
            raise RefusedInput("E-NONFINITE", f"the adapter holds NaN or infinity for {self.name!r}")
        if self.type not in _PLAIN:
            return memoryview(ggml().encode(self.rows, self.type).numpy())
        cast = self.rows.to(_PLAIN[self.type]).contiguous()
        if not torch.isfinite(cast).all():
            raise RefusedInput("E-GGUF-NONFINITE", f"{self.name!r} holds values that are too large for {self.type}")
        return memoryview(cast.flatten().view(torch.uint8).numpy())


def halves(adapter: Adapter, layout: Layout, wanted: str) -> list[Half]:
    """Both matrices of every adapted weight, in the order of the adapter's file.

    RefusedInput: E-GGUF-LORA for what such a file cannot say, E-MERGE-UNMATCHED for a weight that the base does not
    have, E-MERGE-SHAPE for one of another shape.
    """
    _refuse_unsayable(adapter)
    places = {place.hf: place for place in layout.places}
    found: list[Half] = []
    for module, factors in adapter.factors.items():
        place = places.get(f"{module}.weight")
        if place is None:
            raise _other_base("E-MERGE-UNMATCHED", f"{module!r} is no module of the base")
        _check(module, factors, place, layout)
        found += _pair(place, factors, adapter.settings, layout.sizes.head, wanted)
    return found


def _refuse_unsayable(adapter: Adapter) -> None:
    # PEFT keeps the base's own rows beside the change of an embedding; they say nothing new
    replaced = [name for name in adapter.replaced if name.removesuffix(".weight") not in adapter.factors]
    reasons = {
        "DoRA scales whole weights": [name for name, one in adapter.factors.items() if one.magnitude is not None],
        "weights of its own replace the base's": replaced,
        "rows of its own replace tokens of the base": list(adapter.tokens),
        "biases are added": list(adapter.biases),
        "it changes nothing": [] if adapter.factors else ["no A and B"],
        "alpha is 0, which llama.cpp takes for none": [] if adapter.settings.alpha else ["lora_alpha"],
    }
    for reason, names in reasons.items():
        if names:
            raise RefusedInput(
                "E-GGUF-LORA",
                f"the adapter cannot be said in a GGUF: {reason}",
                facts=[f"{len(names)} of them, first {names[0]!r}"],
                hint="merge it into its base instead ('kind: merge') and write that as a GGUF",
            )


def _check(module: str, factors: Factors, place: Place, layout: Layout) -> None:
    shape = factors.shape[::-1] if factors.embedding else factors.shape
    if shape != place.gguf_shape:
        raise _other_base("E-MERGE-SHAPE", f"{module!r} has the shape {shape}, the base's {place.gguf_shape}")
    tied = bool(layout.config.get("tie_word_embeddings"))
    if tied and place.gguf in {_EMBEDDING, "output.weight"}:
        raise RefusedInput(
            "E-GGUF-LORA",
            f"the adapter cannot be said in a GGUF: {module!r} is one tensor with the other embedding",
            facts=["llama.cpp has no adapter for one use of a tensor that has two"],
            hint="merge it into its base instead ('kind: merge') and write that as a GGUF",
        )


def _other_base(code: str, what: str) -> RefusedInput:
    return RefusedInput(
        code, f"the adapter was made for another model: {what}", hint="name the model it was trained on as 'model'"
    )


def file_alpha(settings: LoraSettings) -> float:
    """The file's alpha, with which llama.cpp's ``alpha / rank`` is the adapter's scale at its own rank."""
    return settings.alpha * math.sqrt(settings.rank) if settings.rslora else settings.alpha


def _pair(place: Place, factors: Factors, settings: LoraSettings, head: int, wanted: str) -> Iterator[Half]:
    down, up = factors.down, factors.up
    # a pair with an alpha or, rank-stabilised, a rank of its own has another scale than the file's alpha gives it
    own = factors.scale * down.shape[0] / file_alpha(settings)
    if abs(own - 1) > _ROUNDING:
        up = up.float() * own
    if place.map == "rotary":
        up = Rotary(head, back=False)(up, 0)
    if place.gguf == _EMBEDDING:
        down = down.T
    for part, rows in (("lora_a", down), ("lora_b", up)):
        yield Half(f"{place.gguf}.{part}", rows.contiguous(), _type(rows, wanted))


def _type(rows: torch.Tensor, wanted: str) -> str:
    """The wanted type; F16 for rows that are no whole number of its blocks, as the reference has it."""
    return "F16" if rows.shape[-1] % GGML_TYPES[wanted].block else wanted


def lora_fields(layout: Layout, settings: LoraSettings) -> list[Field]:
    """What llama.cpp must know of an adapter."""
    return [
        text("general.architecture", layout.arch),
        text("general.type", "adapter"),
        text("adapter.type", "lora"),
        f32("adapter.lora.alpha", file_alpha(settings)),
        u32("general.quantization_version", 2),
    ]


def write_lora(path: Path, fields: Sequence[Field], pairs: Sequence[Half]) -> None:
    """Write the file; one matrix is encoded at a time."""
    for kind in {half.type for half in pairs} - _PLAIN.keys():
        ggml().prepare(kind)
    write_gguf(path, fields, [half.info for half in pairs], (half.encoded() for half in pairs))
