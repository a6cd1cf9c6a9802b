"""The words in which an architecture is written down: modules, keys, what llama.cpp takes for granted.

One description serves both ways. Hugging Face → GGUF reads it from left to right; GGUF → Hugging Face from right to
left, with the maps turned round. Names, keys and rules are those of llama.cpp's converter
(https://github.com/ggml-org/llama.cpp/tree/master/conversion) and of gguf-py's ``constants.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: What happens to a tensor's values on the way to GGUF. ``rotary``: the rows of each head go from two halves to
#: neighbouring pairs. ``plus_one``: norms that multiply by 1 + w become norms that multiply by it. ``transposed``:
#: GPT-2 keeps its matrices inputs first.
Map = Literal["same", "rotary", "plus_one", "transposed"]

#: A configuration as transformers completes it: every name has its value.
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Module:
    """The tensors of one module, by their names without ``.weight`` and ``.bias``.

    In ``hf`` a leading ``*`` stands for the prefix of the architecture; ``N`` stands for the number of the layer in
    both. ``shape`` is that of the weight in the GGUF, in the names of ``Sizes``; a bias has its first size. ``bias``:
    none (""), there whenever the weight is ("always"), or there if config.json sets the flag of that name.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    map: Map = "same"
    bias: str = ""


@dataclass(frozen=True)
class Key:
    """A number of config.json and the metadata field that holds it, ``NAME.gguf`` for the architecture ``NAME``.

    ``optional``: not written where config.json has none; ``size`` names the size that is written then instead.
    """

    gguf: str
    hf: str
    kind: Literal["u32", "f32"] = "u32"
    optional: bool = False
    size: str = ""


#: Fields that are more than one number: the rule that scales positions, the base of the rotation (and that of layers
#: with a window), the size of a head's rotated part, the context that scaling starts from, the window or 0, the number
#: of the file type.
Part = Literal["scaling", "theta", "local_theta", "rotated", "original_context", "window_or_0", "file_type"]


@dataclass(frozen=True)
class Sizes:
    """The sizes that shapes are made of."""

    layers: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head: int
    rotated: int
    vocabulary: int
    context: int

    def of(self, name: str) -> int:
        """A size by its name in a ``Module.shape``."""
        return {
            "queries": self.heads * self.head,
            "keys": self.kv_heads * self.head,
            "queries_keys_values": (self.heads + 2 * self.kv_heads) * self.head,
            "gate_up": 2 * self.wide,
        }.get(name) or int(getattr(self, name))


#: What llama.cpp takes an entry of config.json to be: one of these values, or the one that follows from the sizes.
Implied = tuple[Any, ...] | Callable[[Sizes], Any]


@dataclass(frozen=True)
class Architecture:
    """One architecture: ``name`` is llama.cpp's, ``model`` and ``model_type`` are transformers'.

    ``implied`` are the entries of config.json that a GGUF cannot say: a model that has others would convert and then
    compute something else, so it is refused; a GGUF read back gets them (of several values the first).
    ``scalings`` are the rules for positions that llama.cpp has for it; ``partial``: it can rotate a part of each head.
    ``windowed``: llama.cpp knows the layers that look back only so far. ``skipped`` are endings of tensors that hold
    no weights. ``f32``: matrices that stay F32 whatever the type.
    """

    name: str
    model: str
    model_type: str
    keys: tuple[Key | Part, ...]
    modules: tuple[Module, ...]
    prefixes: tuple[str, ...] = ("model.",)
    scalings: tuple[str, ...] = ("default",)
    partial: bool = False
    windowed: bool = False
    implied: Mapping[str, Implied] = field(default_factory=dict)
    skipped: tuple[str, ...] = (".rotary_emb.inv_freq",)
    f32: frozenset[str] = frozenset()

    def implication(self, name: str, sizes: Sizes) -> tuple[Any, ...]:
        """The values that llama.cpp takes the entry ``name`` of config.json to have."""
        found = self.implied[name]
        return (found(sizes),) if callable(found) else found

    @property
    def hf_keys(self) -> dict[str, str]:
        """config.json's name of each number that has a key, by that key."""
        return {key.gguf: key.hf for key in self.keys if isinstance(key, Key)}
