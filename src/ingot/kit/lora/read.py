"""Read an adapter: which change belongs to which module. Its tensors stay in the mapped file until they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from ingot.errors import RefusedInput
from ingot.kit.code_guard import refuse_code
from ingot.kit.lora.config import LoraSettings, read_settings
from ingot.kit.lora.files import CONFIG, WEIGHTS, Record, read_record
from ingot.kit.safetensors_check import check_file

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)"
    r"(?:\.(weight|bias))?"
)
#: Parts that serve training alone: the projection of VeLoRA's backward pass, the sampler of MonteCLoRA.
_TRAINING = re.compile(r".+\.(lora_velora_embed|lora_monteclora_sampler)(\..+)?")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Factors:
    """One low-rank change: A (r × in), B (out × r), the scale. For an embedding ``in`` counts the tokens."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    embedding: bool = False
    magnitude: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer it belongs to."""
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True)
class Adapter:
    """An adapter as read, by names of the base's modules (``replaced``: of its weights).

    ``biases`` are added with their scale; ``tokens`` are rows that replace those of an embedding.
    """

    settings: LoraSettings
    record: Record = field(default_factory=Record)
    factors: Mapping[str, Factors] = field(default_factory=dict)
    biases: Mapping[str, tuple[torch.Tensor, float]] = field(default_factory=dict)
    tokens: Mapping[str, tuple[tuple[int, ...], torch.Tensor]] = field(default_factory=dict)
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA adapter. Its tensors are views of the mapped file.

    RefusedInput: E-NOT-ADAPTER when the files are not there, E-CONFIG-CODE and E-FORMAT-CODE (``refuse_code``),
    E-MERGE-METHOD when a merge is not ``W + s·B·A``, E-MERGE-SHAPE when A and B do not fit each other or the rank,
    E-MERGE-CONFIG and E-MERGE-RECORD for values that cannot be, E-ST-* (``check_file``).
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise RefusedInput("E-NOT-ADAPTER", f"the folder holds no {name}, so it is not a PEFT adapter")
    refuse_code(folder)
    settings, record = read_settings(folder), read_record(folder)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(folder).items():
        module, part = _split(name)
        if part is None:
            continue
        if part:
            parts.setdefault(module, {})[part] = tensor
        else:
            replaced[module] = tensor
    return Adapter(
        settings,
        record,
        {module: _factors(module, found, settings) for module, found in parts.items() if set(found) != {"tokens"}},
        {module: (found["bias"], settings.scale_of(module)) for module, found in parts.items() if "bias" in found},
        {module: _tokens(module, found["tokens"], settings) for module, found in parts.items() if "tokens" in found},
        replaced,
    )


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    for entry in check_file(path):
        if entry.dtype not in _FLOATS:
            raise RefusedInput("E-MERGE-CONFIG", f"{WEIGHTS} holds {entry.name!r} as {entry.dtype}, which is no float")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def _split(name: str) -> tuple[str, str | None]:
    """(module, part); for a tensor that replaces one of the base (its name, ""); (…, None): of no use to a merge."""
    inner = name.removeprefix(_PREFIX)
    if _TRAINING.fullmatch(inner):
        return inner, None
    found = _PART.fullmatch(inner)
    if found:
        part = "bias" if found[3] == "bias" else "tokens" if found[2].startswith("token_") else found[2]
        if part != "bias" or found[2] == "lora_B":
            return found[1].removesuffix(".base_layer"), part
    if re.search(r"\.(lora_|token_adapter\.)", inner):
        raise RefusedInput("E-MERGE-METHOD", f"the adapter holds a tensor that has no place in a merge: {name!r}")
    return inner.replace(".modules_to_save", "").replace(".base_layer", ""), ""


def _factors(module: str, parts: Mapping[str, torch.Tensor], settings: LoraSettings) -> Factors:
    embedding = "lora_embedding_A" in parts
    down = parts.get("lora_embedding_A" if embedding else "lora_A")
    up = parts.get("lora_embedding_B" if embedding else "lora_B")
    if down is None or up is None:
        raise RefusedInput("E-MERGE-SHAPE", f"the adapter holds only one of A and B for {module!r}")
    rank, magnitude = settings.rank_of(module), parts.get("lora_magnitude_vector")
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] != rank:
        raise RefusedInput(
            "E-MERGE-SHAPE",
            f"A and B of {module!r} do not fit each other and the rank",
            facts=[f"A {tuple(down.shape)}, B {tuple(up.shape)}, rank {rank}"],
        )
    if settings.dora != (magnitude is not None) or (magnitude is not None and magnitude.numel() != up.shape[0]):
        raise RefusedInput(
            "E-MERGE-SHAPE",
            f"use_dora and the magnitudes of {module!r} do not fit each other",
            facts=[f"use_dora {settings.dora}, magnitudes {None if magnitude is None else tuple(magnitude.shape)}"],
        )
    return Factors(down, up, settings.scale_of(module), embedding, magnitude)


def _tokens(module: str, rows: torch.Tensor, settings: LoraSettings) -> tuple[tuple[int, ...], torch.Tensor]:
    """The trained rows of an embedding and whose they are."""
    named = (found for name, found in settings.tokens if name is None or f".{module}".endswith(f".{name}"))
    indices = next(named, ())
    if rows.ndim != 2 or len(indices) != rows.shape[0]:
        raise RefusedInput(
            "E-MERGE-SHAPE",
            f"the trained tokens of {module!r} are not those that trainable_token_indices names",
            facts=[f"{len(indices)} indices, rows {tuple(rows.shape)}"],
        )
    return indices, rows
