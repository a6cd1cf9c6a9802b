"""Depth pruning: the layers that change the least of what flows through them go (Men et al. 2024, ShortGPT).

The influence of a layer is 1 minus the cosine between what a token's hidden state is before and after it, averaged over
the tokens of the calibration texts (their "block influence"). Measured once, on the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit.calibration import watched
from ingot.kit.stream.vocabulary import Route, Slot

_OTHERWISE = "make it smaller by another method: magnitude, wanda or sparsegpt"
#: Fields of a config that say by number which layers are of another kind: nothing renumbers them.
_NUMBERED = ("mlp_only_layers", "first_k_dense_replace", "num_kv_shared_layers", "cross_attention_layers")


def stack_of(model: Any) -> str:
    """The name of the list of layers (``model.layers``). RefusedInput (E-PRUNE-DEPTH) where there is no single one."""
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and ".layers." not in f".{name}"
    ]
    if len(found) != 1:
        raise RefusedInput(
            "E-PRUNE-DEPTH",
            f"the architecture {model.config.model_type} has no single list of layers to drop some of",
            facts=[f"num_hidden_layers {count}; lists of that length: {', '.join(found) or 'none'}"],
            hint=_OTHERWISE,
        )
    return str(found[0])


def influences(
    model: Any, stack: str, rows: Sequence[Sequence[int]], report: Callable[[int, int], None]
) -> list[float]:
    """The influence of each layer over all tokens of ``rows``; ``report`` gets (rows, tokens) done."""
    layers = list(model.get_submodule(stack))
    sums = [0.0] * len(layers)

    def watch(index: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).double()
            after = (output[0] if isinstance(output, tuple) else output).double()
            sums[index] += float((1 - torch.cosine_similarity(before, after, dim=-1)).sum())

        return hook

    handles = [layer.register_forward_hook(watch(n), with_kwargs=True) for n, layer in enumerate(layers)]
    tokens = watched(model, rows, handles, report)
    return [total / tokens for total in sums]


def lowest(values: Sequence[float], wanted: float) -> list[int]:
    """The numbers of the ``wanted`` (or, below 1, that share of) layers of the lowest influence; equal ones: the later.

    RefusedInput (E-PRUNE-DEPTH) when that is none or all of them.
    """
    count = round(wanted * len(values)) if wanted < 1 else int(wanted)
    if not 0 < count < len(values):
        raise RefusedInput(
            "E-PRUNE-DEPTH",
            f"drop_layers {wanted:g} would drop {count} of {len(values)} layers",
            hint="at least one must go, and one stay",
        )
    return sorted(sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:count])


def config_without(config: Mapping[str, Any], resolved: Mapping[str, Any], dropped: Sequence[int]) -> dict[str, Any]:
    """config.json without the layers: their number, and every list that has an entry a layer.

    ``resolved`` is the config as transformers completes it: a list that it derives from the number of a layer (which
    ones slide, which have no positions) is written out, since numbers change.
    RefusedInput (E-PRUNE-DEPTH) for fields that point at layers by number.
    """
    count = int(resolved["num_hidden_layers"])
    numbered = [name for name in _NUMBERED if resolved.get(name)]
    if numbered or (resolved.get("decoder_sparse_step") or 1) > 1:
        raise RefusedInput(
            "E-PRUNE-DEPTH",
            "the model's config names layers by number, which would be others when some are dropped",
            facts=[f"{name}: {resolved[name]}" for name in numbered or ["decoder_sparse_step"]],
            hint=_OTHERWISE,
        )
    gone = set(dropped)
    lists = {
        name: [item for layer, item in enumerate(value) if layer not in gone]
        for name, value in resolved.items()
        if isinstance(value, list) and len(value) == count and count > 1 and name not in _NOT_LAYERS
    }
    return {**config, **lists, "num_hidden_layers": count - len(gone)}


#: Lists that may be as long as there are layers by chance.
_NOT_LAYERS = frozenset({"architectures", "eos_token_id", "pad_token_id", "bos_token_id"})


@dataclass
class DropLayers:
    """Leaves out the layers ``dropped`` of the list ``stack``, and renumbers those behind them."""

    stack: str
    dropped: Sequence[int]

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``. RefusedInput (E-PRUNE-DEPTH) when a layer's tensors are named in another way."""
        there = {int(found[1]) for slot in slots if (found := self._found(slot.name))}
        missing = sorted(set(self.dropped) - there)
        if missing:
            raise RefusedInput(
                "E-PRUNE-DEPTH",
                f"no tensor is named {self.stack}.{missing[0]}.…",
                facts=[f"tensors: {', '.join(slot.name for slot in slots[:4])}, …"],
                hint=_OTHERWISE,
            )

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        found = self._found(slot.name)
        if found is None:
            return [Route(slot, identity="")]
        layer = int(found[1])
        if layer in self.dropped:
            return []
        number = layer - sum(gone < layer for gone in self.dropped)
        return [Route(Slot(f"{self.stack}.{number}.{found[2]}", slot.shape, slot.dtype), identity="")]

    def finish(self) -> None:
        """See ``Transform``."""

    def _found(self, name: str) -> re.Match[str] | None:
        return re.fullmatch(rf"{re.escape(self.stack)}\.(\d+)\.(.+)", name)
