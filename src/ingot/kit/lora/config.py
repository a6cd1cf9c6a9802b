"""``adapter_config.json``: what every field of PEFT's ``LoraConfig`` (0.21) means for a merge.

Each field is in exactly one of three lists: it is used, it changes nothing at a merge, or it is refused unless empty. A
field of a PEFT that is newer than the lists is refused unless empty, by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.lora.files import CONFIG

USED = frozenset({
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out",
    "init_lora_weights", "trainable_token_indices", "ensure_weight_tying",
})  # fmt: skip
#: The names in the file decide where a change goes; the rest says how it was trained or how it runs.
NO_EFFECT = frozenset({
    "target_modules", "exclude_modules", "modules_to_save", "bias", "lora_bias", "layers_to_transform",
    "layers_pattern", "lora_dropout", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "runtime_config", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "velora_config", "monteclora_config",
})  # fmt: skip
REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "it acts only after some tokens, which weights cannot say",
    "arrow_config": "it chooses among adapters for each token",
    "kasa_config": "it removes singular components of the base weights",
    "layer_replication": "it repeats layers of the base",
    "megatron_config": "its matrices are parts of a parallel layer",
    "target_parameters": "it adapts parameters that are no layers, such as fused experts",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "it pools inputs in groups",
}
#: Initialisations after which the base weights are as they were.
PLAIN_STARTS = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica"})
#: Initialisations that change the base weights too: such an adapter is a difference to weights we do not have.
CHANGED_STARTS = ("pissa", "olora", "corda", "loftq", "milora", "lora_ga")


@dataclass(frozen=True)
class LoraSettings:
    """What of an adapter's configuration decides its merge."""

    rank: int
    alpha: float
    ranks: tuple[tuple[re.Pattern[str], float], ...] = ()
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False
    tied: bool = False
    #: Indices of trained tokens, by the last parts of the module's name; None: the input embedding.
    tokens: tuple[tuple[str | None, tuple[int, ...]], ...] = ()

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices."""
        return int(_first(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """``s`` of ``W + s·B·A`` for a module."""
        rank, alpha = self.rank_of(module), _first(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _first(patterns: tuple[tuple[re.Pattern[str], float], ...], module: str, default: float) -> float:
    """The value of the first pattern that ends the module's name, as PEFT matches them."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def read_settings(folder: Path) -> LoraSettings:
    """The settings of a PEFT adapter.

    RefusedInput: E-MERGE-METHOD when a merge is not what this package computes, E-MERGE-CONFIG for a value that cannot
    be.
    """
    config = hf.read_json_file(folder / CONFIG)
    reason = _reason(config)
    if reason:
        raise RefusedInput(
            "E-MERGE-METHOD",
            "this adapter cannot be added to weights",
            facts=[reason],
            hint="convert it to a plain LoRA adapter with PEFT",
        )
    return LoraSettings(
        rank=int(_number(config, "r", 8)),
        alpha=_number(config, "lora_alpha", 8),
        ranks=_patterns(config, "rank_pattern"),
        alphas=_patterns(config, "alpha_pattern"),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        tied=bool(config.get("ensure_weight_tying")),
        tokens=_tokens(config.get("trainable_token_indices")),
    )


def _reason(config: Mapping[str, Any]) -> str | None:
    """Why an adapter is no sum that we know, or None."""
    kind, start = str(config.get("peft_type")), config.get("init_lora_weights", True)
    if kind != "LORA":
        return f"peft_type is {kind}; only LORA can be merged"
    if str(start).lower().startswith(CHANGED_STARTS):
        return f"init_lora_weights {start!r} changed the base weights before training"
    if start is not None and str(start).lower() not in PLAIN_STARTS:
        return f"init_lora_weights {str(start)[:80]!r} is not known here; it may have changed the base weights"
    for name, value in sorted(config.items()):
        if not value or name in USED or name in NO_EFFECT:
            continue
        if name in REFUSED:
            return f"{name} is set: {REFUSED[name]}"
        return f"{name[:80]} is set, a field that this version of ingot does not know"
    return None


def _bad(name: str, value: object) -> RefusedInput:
    return RefusedInput("E-MERGE-CONFIG", f"{CONFIG} holds a value that {name} cannot have: {str(value)[:120]!r}")


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _bad(name, value)
    if name in ("r", "rank_pattern") and (value < 1 or value != int(value)):
        raise _bad(name, value)
    return float(value)


def _patterns(config: Mapping[str, Any], name: str) -> tuple[tuple[re.Pattern[str], float], ...]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise _bad(name, found)
    try:
        return tuple((re.compile(rf"(.*\.)?({key})$"), _number({name: value}, name, 0)) for key, value in found.items())
    except re.error as error:
        raise _bad(name, error.pattern) from error


def _tokens(value: object) -> tuple[tuple[str | None, tuple[int, ...]], ...]:
    lists: dict[str | None, Any] = dict(value) if isinstance(value, dict) else {None: value} if value else {}
    for found in lists.values():
        sound = isinstance(found, list) and all(type(item) is int and item >= 0 for item in found)
        if not sound or len(set(found)) != len(found):
            raise _bad("trainable_token_indices", found)
    return tuple((name, tuple(found)) for name, found in lists.items())
