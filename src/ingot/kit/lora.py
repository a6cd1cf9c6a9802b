"""LoRA adapters: attach one for training, write it with the same bytes every time, add one to weights.

Files and names are PEFT's. The law of a merge: ``W + s·B·A`` with ``s = alpha / r``, or ``alpha / sqrt(r)`` for
rank-stabilised LoRA (Hu et al. 2021; Kalajdzievski 2023), and for DoRA each output row of that sum scaled to the
learned magnitude (Liu et al. 2024). Computed in fp32, rounded once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.code_guard import refuse_code
from ingot.kit.safetensors_check import check_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Initialisations that change the base weights too: such an adapter is a difference to weights we do not have.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "milora", "lora_ga")
#: Options under which a merge is not ``W + s·B·A``; refused unless empty.
_UNSUPPORTED = (
    "lora_bias", "alora_invocation_tokens", "trainable_token_indices", "target_parameters", "layer_replication",
    "megatron_config", "arrow_config", "use_bdlora", "use_qalora", "kasa_config", "monteclora_config",
    "velora_config",
)  # fmt: skip


def write_adapter(out: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an adapter: sets sorted, the base's path dropped, no model card.

    PEFT itself writes sets in the order of string hashes, which changes from process to process.
    """
    clean = {key: _plain(value) for key, value in config.items()}
    clean.update(base_model_name_or_path=None, revision=None, inference_mode=True)
    hf.write_json(out / CONFIG, clean)
    hf.write_safetensors(out / WEIGHTS, dict(tensors))


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return getattr(value, "value", value)


def match_modules(linear: Sequence[str], wanted: Sequence[str], code: str) -> list[str]:
    """The linear layers that ``wanted`` names: by full name or by its last parts (``q_proj``, ``mlp.up_proj``).

    RefusedInput (``code``) names each wanted entry that matches nothing, and what there is.
    """
    missing = [name for name in wanted if not any(_is(module, name) for module in linear)]
    if missing or not linear:
        raise RefusedInput(
            code,
            f"no linear layer is named {', '.join(missing)}" if missing else "the model has no linear layers",
            facts=[f"linear layers: {', '.join(kinds_of(linear)) or 'none'}"],
            hint="name some of these, or use all-linear",
        )
    return [module for module in linear if any(_is(module, name) for name in wanted)]


def kinds_of(modules: Sequence[str]) -> list[str]:
    """The different last parts of module names, sorted."""
    return sorted({module.rpartition(".")[2] for module in modules})


def shortest(chosen: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Last parts that name exactly the chosen modules where there are such, else the full names; sorted."""
    parts = kinds_of(chosen)
    reached = {module for module in modules if any(_is(module, part) for part in parts)}
    return parts if reached == set(chosen) else sorted(chosen)


def _is(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


@dataclass(frozen=True)
class Delta:
    """What an adapter does to one weight: A (r × in), B (out × r), the scale, and for DoRA the row magnitudes."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    transposed: bool = False
    embedding: bool = False
    magnitude: torch.Tensor | None = None

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in fp32, in the layout of ``weight`` (out × in; in × out when ``transposed``)."""
        change = (self.up.float() @ self.down.float()) * self.scale
        # an embedding is (vocabulary × width): one row an input, so its product comes out transposed
        flipped = self.embedding or self.transposed
        base = weight.float().T if flipped else weight.float()
        merged = base + change
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(merged, dim=1)
            merged = merged * (self.magnitude.float() / norm).unsqueeze(1)
        return (merged.T if flipped else merged).contiguous()

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight this belongs to."""
        out, into = self.up.shape[0], self.down.shape[1]
        return (into, out) if self.embedding or self.transposed else (out, into)


@dataclass(frozen=True)
class Adapter:
    """An adapter as read: the change of each weight, and tensors that replace the base's, both by weight name."""

    deltas: Mapping[str, Delta]
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rank: int = 0

    def names(self) -> set[str]:
        """The names of all weights it touches."""
        return set(self.deltas) | set(self.replaced)


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA adapter. It is held in memory, the base is not.

    RefusedInput: E-NOT-ADAPTER when the files are not there, E-CONFIG-CODE and E-FORMAT-CODE (``refuse_code``),
    E-MERGE-METHOD when a merge is not ``W + s·B·A``, E-MERGE-SHAPE when A and B do not fit each other or the rank.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise RefusedInput("E-NOT-ADAPTER", f"the folder holds no {name}, so it is not a PEFT adapter")
    refuse_code(folder)
    config = hf.read_json_file(folder / CONFIG)
    _check_method(config)
    check_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, part = _split(name)
        if part:
            parts.setdefault(module, {})[part] = tensor
        else:
            replaced[module] = tensor
    deltas = {f"{module}.weight": _delta(module, found, config) for module, found in parts.items()}
    return Adapter(deltas, replaced, int(config.get("r", 0)))


def _split(name: str) -> tuple[str, str]:
    """(module, part) of an adapter tensor; for a tensor that replaces one of the base (its name, "")."""
    inner = name.removeprefix(_PREFIX)
    found = re.fullmatch(
        r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?", inner
    )
    if found:
        return found[1], found[2]
    if ".lora_" in inner:
        raise RefusedInput("E-MERGE-METHOD", f"the adapter holds a tensor that has no place in a merge: {name!r}")
    return inner.replace(".modules_to_save", "").replace(".base_layer", ""), ""


def _check_method(config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    start = str(config.get("init_lora_weights", True)).lower()
    reason = None
    if kind != "LORA":
        reason = f"peft_type is {kind}; only LORA can be merged"
    elif start.startswith(_CHANGES_BASE):
        reason = f"init_lora_weights {start!r} changed the base weights before training"
    else:
        used = [name for name in _UNSUPPORTED if config.get(name)]
        if used:
            reason = f"{used[0]} is set, which adds something other than B·A"
    if reason:
        raise RefusedInput(
            "E-MERGE-METHOD",
            "this adapter cannot be added to weights",
            facts=[reason],
            hint="convert it to a plain LoRA adapter with PEFT",
        )


def _delta(module: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Delta:
    embedding = "lora_embedding_A" in parts
    down = parts.get("lora_embedding_A" if embedding else "lora_A")
    up = parts.get("lora_embedding_B" if embedding else "lora_B")
    if down is None or up is None:
        raise RefusedInput("E-MERGE-SHAPE", f"the adapter holds only one of A and B for {module!r}")
    rank = int(_pattern(config.get("rank_pattern"), module, config.get("r", 0)))
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] != rank:
        raise RefusedInput(
            "E-MERGE-SHAPE",
            f"A and B of {module!r} do not fit each other and the rank",
            facts=[f"A {tuple(down.shape)}, B {tuple(up.shape)}, rank {rank}"],
        )
    alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Delta(
        down, up, scale, bool(config.get("fan_in_fan_out")) and not embedding, embedding,
        parts.get("lora_magnitude_vector"),
    )  # fmt: skip


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as PEFT matches them."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


@dataclass
class Merge:
    """Tensor-by-tensor merge of an adapter into a base, with what it counted on the way."""

    adapter: Adapter
    dtype: torch.dtype | None
    tied: bool
    merged: int = 0
    parameters: int = 0
    delta_squares: float = 0.0
    weight_squares: float = 0.0
    output_bytes: int = field(default=0)

    def untie(self) -> bool:
        """Whether input and output embedding, one tensor in the base, differ after the merge."""
        touched = self.adapter.names() & {"lm_head.weight", "model.embed_tokens.weight"}
        return self.tied and bool(touched)

    def stream(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged tensors, one by one, in the order of the base.

        A tied model whose embedding is touched gets a ``lm_head.weight`` of its own, right after it: the adapter
        changed what one of the two reads, not both.
        """
        for name, tensor in tensors:
            yield name, self._one(name, tensor)
            if self.untie() and name == "model.embed_tokens.weight":
                yield "lm_head.weight", self._one("lm_head.weight", tensor)

    def _one(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        change = self.adapter.deltas.get(name)
        base = self._replaced(name, tensor)
        if change is not None:
            if change.shape != tuple(base.shape):
                raise _misfit(name, change.shape, tuple(base.shape))
            before = base.float()
            after = change.apply(base)
            self.delta_squares += float((after - before).double().square().sum())
            self.weight_squares += float(before.double().square().sum())
            base = after
        if change is not None or name in self.adapter.replaced:
            self.merged += 1
        result = base.to(dtype)
        self.parameters += result.numel()
        self.output_bytes += result.numel() * result.element_size()
        return result

    def _replaced(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        other = self.adapter.replaced.get(name)
        if other is None:
            return tensor
        if other.shape != tensor.shape:
            raise _misfit(name, tuple(other.shape), tuple(tensor.shape))
        return other.to(tensor.dtype)


def _misfit(name: str, adapter: tuple[int, ...], base: tuple[int, ...]) -> RefusedInput:
    return RefusedInput(
        "E-MERGE-SHAPE",
        f"the adapter was made for another model: {name!r} has another shape",
        facts=[f"adapter {adapter}, base {base}"],
        hint="merge it into the model it was trained on",
    )


def check_names(adapter: Adapter, names: Sequence[str], *, tied: bool) -> None:
    """Refuse an adapter with a tensor that belongs to no weight of the base (E-MERGE-UNMATCHED)."""
    known = set(names) | ({"lm_head.weight"} if tied else set())
    lost = sorted(adapter.names() - known)
    if lost:
        raise RefusedInput(
            "E-MERGE-UNMATCHED",
            f"{len(lost)} of {len(adapter.names())} adapted weights do not exist in the base",
            facts=[f"the first: {', '.join(lost[:4])}"],
            hint="merge it into the model it was trained on",
        )
