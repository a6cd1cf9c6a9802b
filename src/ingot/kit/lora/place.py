"""Which weight of the base each part of a change belongs to, told by names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ingot.errors import RefusedInput
from ingot.kit.lora.combine import Change
from ingot.kit.lora.patch import Patch
from ingot.kit.lora.read import Factors
from ingot.kit.stream.vocabulary import Slot

HEAD = "lm_head.weight"
#: The last part of an input embedding's name, in the models that ingot knows.
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")


@dataclass(frozen=True)
class Place:
    """All that is done to one weight."""

    patch: Patch | None = None
    replaced: torch.Tensor | None = None
    tokens: tuple[tuple[int, ...], torch.Tensor] | None = None
    biases: tuple[tuple[torch.Tensor, float], ...] = ()


_UNTOUCHED = Place()


@dataclass(frozen=True)
class Places:
    """What is done to each written weight, and which weights are written twice.

    ``apart``: whatever the base's configuration says, the two embeddings are not tied any more.
    """

    found: Mapping[str, Place] = field(default_factory=dict)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apart: bool = False

    def at(self, name: str) -> Place:
        """What is done to the weight of that name."""
        return self.found.get(name, _UNTOUCHED)


def find_places(change: Change, slots: Sequence[Slot], *, conv1d: bool = False) -> Places:
    """Find the place of every part of a change.

    ``conv1d``: the base is of a kind whose inner layers are stored in × out (GPT-2). RefusedInput: E-MERGE-UNMATCHED
    for a part that belongs to no weight of the base, E-MERGE-SHAPE for one that is not of its shape, E-MERGE-METHOD for
    a tied embedding that is changed in two ways at once.
    """
    shapes = {slot.name: slot.shape for slot in slots}
    embedding = next((name for name in shapes if _is_embedding(name)), None)
    tied = HEAD not in shapes and embedding is not None
    if tied and embedding is not None:
        shapes[HEAD] = shapes[embedding]
    inner = _Names(shapes)
    lost = sorted(name for name in change.names() if inner.find(name) is None)
    if lost:
        raise RefusedInput(
            "E-MERGE-UNMATCHED",
            f"{len(lost)} of {len(change.names())} adapted weights do not exist in the base",
            facts=[f"the first: {', '.join(lost[:4])}"],
            hint="merge it into the model it was trained on",
        )
    found = {}
    for name, module in change.names().items():
        at = inner.find(name)
        assert at is not None
        found[at] = _place(change, name, module, shapes[at], conv1d=(conv1d or change.fan_in_fan_out) and at != HEAD)
    return _tie(found, embedding, change, tied=tied)


def _is_embedding(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and parts[-2:-1] != [] and parts[-2] in _EMBEDDINGS


class _Names:
    """Names of the base's weights, found by names that may begin with the name of the inner model.

    GPT-2 is published without the ``transformer.`` that its modules begin with.
    """

    def __init__(self, names: Mapping[str, object]) -> None:
        self._names = names
        self._tops = {name.partition(".")[0] for name in names}

    def find(self, name: str) -> str | None:
        if name in self._names:
            return name
        top, _, rest = name.partition(".")
        return rest if top not in self._tops and rest in self._names else None


def _place(change: Change, name: str, module: str, shape: tuple[int, ...], *, conv1d: bool) -> Place:
    weight = name == f"{module}.weight"
    factors = change.factors.get(module, ()) if weight else ()
    tokens = change.tokens.get(module) if weight else None
    biases = change.biases.get(module, ()) if name == f"{module}.bias" else ()
    replaced = change.replaced.get(name)
    patch = _patch(name, factors, shape, conv1d=conv1d) if factors else None
    if replaced is not None and tuple(replaced.shape) != shape:
        raise _misfit(name, tuple(replaced.shape), shape)
    if tokens and (len(shape) != 2 or tokens[1].shape[1] != shape[1] or max(tokens[0], default=0) >= shape[0]):
        raise _misfit(name, (max(tokens[0], default=0) + 1, tokens[1].shape[1]), shape)
    for bias, _ in biases:
        if tuple(bias.shape) != shape:
            raise _misfit(name, tuple(bias.shape), shape)
    return Place(patch, replaced, tokens, biases)


def _patch(name: str, factors: tuple[Factors, ...], shape: tuple[int, ...], *, conv1d: bool) -> Patch:
    """A change in the layout of the weight: of a Conv1D the shape tells it, but where it is square.

    The flag in the adapter does not: PEFT keeps the one of the layer that it looked at last.
    """
    out, into = factors[0].shape
    flipped = factors[0].embedding or (conv1d and shape == (into, out))
    expected = (into, out) if flipped else (out, into)
    if expected != shape:
        raise _misfit(name, expected, shape)
    return Patch(factors, flipped)


def _misfit(name: str, adapter: tuple[int, ...], base: tuple[int, ...]) -> RefusedInput:
    return RefusedInput(
        "E-MERGE-SHAPE",
        f"the adapter was made for another model: {name!r} has another shape",
        facts=[f"adapter {adapter}, base {base}"],
        hint="merge it into the model it was trained on",
    )


def _tie(found: dict[str, Place], embedding: str | None, change: Change, *, tied: bool) -> Places:
    """What becomes of the two embeddings.

    Trained tokens, and a change trained with ``ensure_weight_tying``, are of both: what is tied stays so. Any other
    change is of one of the two.
    """
    first, second = found.get(embedding or ""), found.get(HEAD)
    if first is None and second is None:
        return Places(found)
    if first is not None and _is_of_both(first, second, change):
        if tied:
            found.pop(HEAD, None)
        return Places(found)
    if tied and first is not None and first.tokens and second is not None:
        raise RefusedInput(
            "E-MERGE-METHOD",
            "the adapter changes tokens of a tied embedding, and its other use in another way",
            facts=[f"{embedding} and {HEAD} are one tensor in the base"],
        )
    copies = {embedding: (HEAD,)} if tied and embedding else {}
    return Places(found, copies, apart=True)


def _is_of_both(first: Place, second: Place | None, change: Change) -> bool:
    if first.tokens and first.patch is None and first.replaced is None:
        return second is None
    return change.tied and (second is None or _same(first, second))


def _same(first: Place, second: Place) -> bool:
    """Whether the output embedding's change is the input embedding's, transposed as its layer is."""
    if first.replaced is not None and second.replaced is not None and not torch.equal(first.replaced, second.replaced):
        return False
    if (first.patch is None) != (second.patch is None):
        return False
    if first.patch is None or second.patch is None:
        return first.replaced is not None and second.replaced is not None
    one, other = first.patch.factors, second.patch.factors
    return len(one) == len(other) and all(
        a.scale == b.scale and torch.equal(a.down.T, b.up) and torch.equal(a.up.T, b.down)
        for a, b in zip(one, other, strict=True)
    )
