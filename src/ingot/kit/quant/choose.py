"""Which modules of a model are stored how: patterns over names, checked against what the model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit import layers
from ingot.kit.naming import RULE, means
from ingot.kit.quant.scheme import CASTS, COMPRESSED, Scheme, quantization_config
from ingot.kit.stream.vocabulary import Slot


@dataclass(frozen=True)
class Wish:
    """What a spec asks for: the scheme of all linear layers, what is left out, and what some modules get instead.

    ``ignore`` None leaves out the output embedding. Of ``overrides`` (patterns, scheme) the first that fits counts,
    also over ``ignore``.
    """

    scheme: Scheme
    ignore: tuple[str, ...] | None = None
    overrides: tuple[tuple[tuple[str, ...], Scheme], ...] = ()


@dataclass(frozen=True)
class Modules:
    """The modules of a model whose weights may be stored otherwise: linear layers, embeddings, and who shares one."""

    linear: tuple[str, ...]
    embeddings: tuple[str, ...]
    head: str | None
    tied: str | None

    @property
    def named(self) -> tuple[str, ...]:
        """All that a pattern can mean."""
        return (*self.embeddings, *self.linear)


@dataclass(frozen=True)
class Choice:
    """The scheme of each chosen module, in the model's order.

    ``apart``: the output embedding that shared its weights with an embedding that is quantized, and now has its own.
    """

    schemes: Mapping[str, Scheme]
    modules: Modules
    apart: str | None = None

    def having(self, names: Collection[str]) -> dict[str, Scheme]:
        """The modules whose scheme is one of these."""
        return {module: scheme for module, scheme in self.schemes.items() if scheme.name in names}

    def config(self) -> dict[str, Any] | None:
        """``quantization_config``, None where nothing is stored in a format of compressed-tensors."""
        chosen = self.having(COMPRESSED)
        if not chosen:
            return None
        linear = set(self.modules.linear)
        uniform = len(set(chosen.values())) == 1 and not set(chosen) - linear
        groups = [
            (scheme, ["Linear"] if uniform else [name for name, found in chosen.items() if found == scheme])
            for scheme in sorted(set(chosen.values()), key=str)
        ]
        left = [name for name in self.modules.linear if name not in chosen]
        return quantization_config(groups, sorted(left) if uniform else [])


def modules_of(folder: Path, names: Collection[str]) -> Modules:
    """The linear layers and embeddings of a folder's model that have a weight of their own among ``names``.

    RefusedInput (E-MODEL-ARCH) for a model without linear layers.
    """
    model = layers.skeleton(folder)
    if not layers.linear_modules(model):
        raise layers.no_linear(model)
    head, inner = model.get_output_embeddings(), model.get_input_embeddings()
    found = list(model.named_modules())
    linear = [name for name, module in found if isinstance(module, torch.nn.Linear)]
    embeddings = [name for name, module in found if isinstance(module, torch.nn.Embedding)]
    output = next((name for name, module in found if module is head), None)
    shares = head is not None and f"{output}.weight" not in names
    tied = next((name for name, module in found if module is inner), None) if shares else None
    return Modules(
        tuple(name for name in linear if f"{name}.weight" in names or name == output),
        tuple(name for name in embeddings if f"{name}.weight" in names),
        output,
        tied,
    )


def choose(modules: Modules, wish: Wish) -> Choice:
    """The scheme of each module. RefusedInput (E-QUANTIZE-MODULES): a pattern, or the wish as a whole, means none."""
    patterns = [*(wish.ignore or ()), *(pattern for some, _ in wish.overrides for pattern in some)]
    refuse_unknown(patterns, modules.named)
    ignored = wish.ignore if wish.ignore is not None else (modules.head,) if modules.head else ()
    schemes: dict[str, Scheme] = {}
    for name in modules.named:
        instead = next((scheme for some, scheme in wish.overrides if any(means(one, name) for one in some)), None)
        general = name in modules.linear and not any(means(one, name) for one in ignored)
        if instead is not None or general:
            schemes[name] = _embedded(name, instead) if name in modules.embeddings else instead or wish.scheme
    apart = _apart(modules, schemes)
    if modules.tied is not None and apart is None and modules.head is not None:
        _refuse_shared(modules, wish)
        schemes.pop(modules.head, None)  # it has no weights of its own
    if not schemes:
        raise RefusedInput(
            "E-QUANTIZE-MODULES",
            "no module is left to quantize",
            facts=[_there(modules.named)],
            hint="let 'ignore' name fewer modules",
        )
    return Choice(schemes, modules, apart)


def _embedded(name: str, scheme: Scheme | None) -> Scheme:
    """The scheme of an embedding, whose inputs are no numbers and whose integers are not packed."""
    assert scheme is not None  # only an override means an embedding
    if scheme.name in CASTS:
        return scheme
    if scheme.name != "W8A16":
        raise RefusedInput(
            "E-QUANTIZE-MODULES",
            f"{name} is an embedding, which no format that transformers loads stores as {scheme.name}",
            hint="embeddings can be W8A16, FP16 or BF16",
        )
    return replace(scheme, apart=True)


def _apart(modules: Modules, schemes: Mapping[str, Scheme]) -> str | None:
    """The output embedding, where it shares the weights of an embedding that is quantized."""
    shared = None if modules.tied is None else schemes.get(modules.tied)
    return modules.head if shared is not None and shared.name in COMPRESSED else None


def _refuse_shared(modules: Modules, wish: Wish) -> None:
    """RefusedInput (E-QUANTIZE-MODULES) for an output embedding that is named, and has no weights of its own."""
    named = [scheme for some, scheme in wish.overrides if modules.head in some and scheme.name in COMPRESSED]
    if named:
        raise RefusedInput(
            "E-QUANTIZE-MODULES",
            f"{modules.head} shares the weights of {modules.tied}, which are to stay as they are",
            hint=f"name both for {named[0].name}: the model is then written untied",
        )


def refuse_unknown(patterns: Sequence[str], names: Sequence[str]) -> None:
    """RefusedInput (E-QUANTIZE-MODULES) for a pattern that means no module."""
    missing = [pattern for pattern in patterns if not any(means(pattern, name) for name in names)]
    if missing:
        raise RefusedInput(
            "E-QUANTIZE-MODULES",
            f"no linear layer or embedding is named {', '.join(missing)}",
            facts=[_there(names)],
            hint=RULE,
        )


def _there(names: Sequence[str]) -> str:
    last = sorted({name.rpartition(".")[2] for name in names})
    return f"there are {', '.join(last) or 'none'}; a whole name is, for example, {max(names, key=len, default='-')}"


def check_shapes(choice: Choice, slots: Sequence[Slot]) -> None:
    """RefusedInput (E-QUANTIZE-SHAPE) where a group size does not divide a row, naming the modules."""
    rows = {slot.name.removesuffix(".weight"): slot for slot in slots}
    bad = [
        (rows[name], scheme.group_size)
        for name, scheme in choice.schemes.items()
        if name in rows and scheme.group_size and rows[name].shape[-1] % scheme.group_size
    ]
    if bad:
        more = [f"{len(bad)} weights in all"] if len(bad) > 8 else []
        raise RefusedInput(
            "E-QUANTIZE-SHAPE",
            f"group_size {bad[0][1]} does not divide every row",
            facts=[*(f"{slot.name}: {slot.shape}" for slot, _ in bad[:8]), *more],
            hint="choose a divisor of all row lengths, leave group_size out, or name these modules under 'overrides'",
        )
