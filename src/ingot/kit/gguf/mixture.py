"""Which ggml type llama.cpp gives each tensor of a file type: its rules as data and a few short functions.

The rules are those of ``llama_model_quantize`` (``src/llama-quant.cpp`` of llama.cpp as llama-cpp-python 0.3.36 carries
it): mixtures by role and layer, fall-backs for rows that are no multiple of a block, tensors that stay as they are. Its
counters run over the tensors in its own order (by layer, then by name), whatever the order of the source. Nothing
here reads a weight: a choice depends on names, shapes and the facts of the model alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.errors import RefusedInput
from ingot.kit.gguf.types import FILE_TYPES, GGML_TYPES, PLAIN

#: What a type becomes where a row is no whole number of its blocks; F16 where not even that fits.
_SMALLER = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

#: Parts of names that are never quantized, of those that a dense decoder can have.
_EXEMPT = ("_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", ".position_embd")
_EXEMPT_NAMES = ("position_embd.weight", "token_types.weight")

#: Role of a tensor by a part of its name, the first that fits.
_ROLES = (
    ("attn_qkv.weight", "value"), ("attn_kv_b.weight", "value"), ("attn_v.weight", "value"), ("attn_k.weight", "key"),
    ("attn_q.weight", "query"), ("attn_output.weight", "mix"), ("ffn_up", "up"), ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)  # fmt: skip

_TINY = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"})
_TWO_BIT = frozenset({"IQ2_S", "IQ2_M"})
_NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask about the model: its architecture in GGUF's naming, layers, heads."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int

    @property
    def group(self) -> int:
        """How many query heads share a key-value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls it a 70 B model, whose value projections it gives more bits."""
        if self.layers != 80:
            return False
        return self.architecture == "qwen2" or (self.architecture == "llama" and self.heads != self.kv_heads)


@dataclass(frozen=True)
class Wish:
    """What is asked for: the file type, whether there is an importance matrix, and types for single tensors.

    ``overrides`` are (regular expression, type), searched in the tensor's name; the first that matches counts, and
    only where the file type is a quantized one, as in llama.cpp. ``embedding`` and ``output`` go before them.
    """

    type: str
    imatrix: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    embedding: str | None = None
    output: str | None = None

    @property
    def base(self) -> str:
        """The type of a matrix for which no rule says otherwise."""
        return FILE_TYPES[self.type][1]


@dataclass(frozen=True)
class Tensor:
    """A tensor to choose for: its GGUF name, its shape (rows first), the type it has before quantizing."""

    name: str
    shape: tuple[int, ...]
    stored: str


@dataclass(frozen=True)
class Choice:
    """The type of one tensor, and the one it would have had if its rows were whole blocks."""

    type: str
    wanted: str
    needs_imatrix: bool = False

    @property
    def fell_back(self) -> bool:
        """Whether the rows forced another type."""
        return self.type != self.wanted


def llama_order(name: str) -> tuple[int, bytes]:
    """The sort key of llama.cpp's map of weights: by layer, those of none first, then by the bytes of the name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name.encode())


def choose(tensors: Sequence[Tensor], facts: ModelFacts, wish: Wish) -> dict[str, Choice]:
    """The type of every tensor, by name.

    RefusedInput: E-GGUF-ROWS for a type asked for by name that the rows cannot have, E-GGUF-IMATRIX when the types need
    an importance matrix and there is none.
    """
    mixture = _Mixture(facts, wish, [tensor.name for tensor in tensors])
    chosen = {tensor.name: mixture.choose(tensor) for tensor in sorted(tensors, key=lambda t: llama_order(t.name))}
    needy = [name for name, choice in chosen.items() if choice.needs_imatrix]
    if needy and not wish.imatrix:
        raise RefusedInput(
            "E-GGUF-IMATRIX",
            f"{wish.type} needs an importance matrix",
            facts=[f"{len(needy)} tensors, first {needy[0]!r} in {chosen[needy[0]].type}"],
            hint="give one in the role 'imatrix', or as 'imatrix: {path: FILE}'",
        )
    return chosen


def quantizable(tensor: Tensor) -> bool:
    """Whether llama.cpp quantizes it at all: matrices of weights, but no norms, positions or routers."""
    name = tensor.name
    # llama.cpp counts dimensions without the outer ones of size 1
    dims = len(tensor.shape) - next((i for i, size in enumerate(tensor.shape) if size != 1), len(tensor.shape))
    return dims > 1 and name.endswith("weight") and name not in _EXEMPT_NAMES and not any(p in name for p in _EXEMPT)


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "embedding"
    return next((role for part, role in _ROLES if part in name), "other")


class _Mixture:
    """llama.cpp's choice with its counters; asked once for each tensor, in ``llama_order``."""

    def __init__(self, facts: ModelFacts, wish: Wish, names: Sequence[str]) -> None:
        self.facts, self.wish = facts, wish
        self.tied = "output.weight" not in names
        self.values = sum(_role(name) == "value" for name in names)
        self.seen = dict.fromkeys(("value", "down"), 0)
        self.seen_wide = dict.fromkeys(("gate", "up"), 0)

    def choose(self, tensor: Tensor) -> Choice:
        wish, role = self.wish, _role(tensor.name)
        if not quantizable(tensor):
            return Choice(tensor.stored, tensor.stored)
        if asked := {"embedding": wish.embedding, "output": wish.output}.get(role):
            return self._exactly(tensor, asked)
        if wish.base in PLAIN:
            return Choice(wish.base, wish.base)
        override = next((kind for pattern, kind in wish.overrides if re.search(pattern, tensor.name)), None)
        wanted = override or self._mixed(role)
        # the output layer goes straight to Q8_0 where the file type's own blocks do not fit
        odd = override is None and self._is_output(role) and not wish.output and self._misfit(tensor, wish.base)
        kind = _fitting(tensor, "Q8_0" if odd else wanted)
        return Choice(kind, wanted, self._needs_imatrix(role, kind))

    def _is_output(self, role: str) -> bool:
        return role == "output" or (self.tied and role == "embedding")

    @staticmethod
    def _misfit(tensor: Tensor, kind: str) -> bool:
        return bool(tensor.shape[-1] % GGML_TYPES[kind].block)

    def _exactly(self, tensor: Tensor, kind: str) -> Choice:
        if self._misfit(tensor, kind):
            raise RefusedInput(
                "E-GGUF-ROWS",
                f"{tensor.name!r} cannot be {kind}: its rows of {tensor.shape[-1]} are no whole number of blocks",
                facts=[f"a block of {kind} holds {GGML_TYPES[kind].block} weights"],
            )
        return Choice(kind, kind, self._needs_imatrix(_role(tensor.name), kind))

    def _needs_imatrix(self, role: str, kind: str) -> bool:
        if role in {"embedding", "output"}:
            return False
        return kind in _NEEDS_IMATRIX or (kind == "Q2_K" and self.wish.type == "Q2_K_S")

    def _mixed(self, role: str) -> str:
        """The type of the mixture, were all rows whole blocks; counts the layers of a role."""
        if self._is_output(role):
            return self._output()
        if role == "embedding":
            return _EMBEDDING.get(self.wish.type, self.wish.base)
        if self.wish.type in _TINY:
            return self._tiny(role)
        rule = {"value": self._value, "down": self._down, "gate": self._wide, "up": self._wide}.get(role)
        return rule(role) if rule else _FIXED.get((role, self.wish.type), self.wish.base)

    def _output(self) -> str:
        wish = self.wish
        if wish.output:
            return wish.output
        if wish.type in _TINY or wish.type == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if wish.base == "Q8_0" else "Q6_K"

    def _tiny(self, role: str) -> str:
        """The mixtures under three bits."""
        kind = self.wish.type
        better = "IQ3_S" if kind in _TWO_BIT else "Q2_K"
        if role == "value":
            self.seen["value"] += 1
            return "Q4_K" if self.facts.group >= 4 else better
        if role == "down":
            self.seen["down"] += 1
            return better if self.seen["down"] - 1 < self.facts.layers // 8 else self.wish.base
        if role == "mix" and kind in {"IQ1_S", "IQ1_M"}:
            return "IQ2_XXS"
        return "IQ3_S" if role == "mix" and kind in _TWO_BIT else self.wish.base

    def _value(self, _role: str) -> str:
        layer, shared, kind = self.seen["value"], self.facts.group >= 4, self.wish.type
        self.seen["value"] += 1
        found = _FIXED.get(("value", kind), self.wish.base)
        if kind in {"Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"} and shared:
            found = "Q4_K"
        elif kind == "IQ3_XXS":
            found = "IQ3_XXS" if self.wish.imatrix else "IQ3_S"
        elif (kind in {"IQ4_NL", "IQ4_XS"} and shared) or layer < {"Q3_K_M": 2, "Q4_K_S": 4}.get(kind, 0):
            found = "Q5_K"
        elif kind in {"Q4_K_M", "Q5_K_M"} and _more_bits(layer, self.values):
            found = "Q6_K"
        return "Q5_K" if self.facts.is_70b and found in {"Q3_K", "Q4_K"} else found

    def _down(self, _role: str) -> str:
        layer, layers, kind = self.seen["down"], self.facts.layers, self.wish.type
        self.seen["down"] += 1
        early = layer < layers // 8
        if kind in {"Q4_K_M", "Q5_K_M"}:
            return "Q6_K" if _more_bits(layer, layers) else self.wish.base
        if kind == "IQ3_XXS" and not self.wish.imatrix:
            return "Q4_K" if early else "Q3_K"
        if kind == "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        # with an importance matrix the first layers of Q4_0 and Q5_0 are guarded, without one those of IQ4
        guarded = _EARLY_DOWN_IMATRIX if self.wish.imatrix else _EARLY_DOWN_NONE
        if early and (kind in _EARLY_DOWN or kind in guarded):
            return _EARLY_DOWN.get(kind) or guarded[kind]
        return _FIXED.get(("down", kind), self.wish.base)

    def _wide(self, role: str) -> str:
        layer, layers = self.seen_wide[role], self.facts.layers
        self.seen_wide[role] += 1
        middle = layers // 8 <= layer < 7 * layers // 8
        return "IQ3_XXS" if self.wish.type == "IQ3_XS" and middle else self.wish.base


_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}
#: Types that hold for every layer, by role and file type.
_FIXED = {
    ("value", "Q2_K"): "Q3_K", ("value", "IQ3_M"): "Q4_K", ("value", "Q3_K_M"): "Q4_K", ("value", "Q3_K_L"): "Q5_K",
    ("key", "IQ3_XS"): "IQ3_XXS", ("key", "IQ3_XXS"): "IQ2_S", ("query", "IQ3_XS"): "IQ3_XXS",
    ("query", "IQ3_XXS"): "IQ2_S", ("down", "Q2_K"): "Q3_K", ("down", "Q3_K_L"): "Q5_K", ("mix", "Q2_K"): "Q3_K",
    ("mix", "IQ3_XXS"): "IQ3_S", ("mix", "Q3_K_M"): "Q4_K", ("mix", "Q3_K_L"): "Q5_K", ("mix", "IQ3_M"): "Q4_K",
}  # fmt: skip
#: Types of the down projections in the first eighth of the layers.
_EARLY_DOWN = {"Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}
_EARLY_DOWN_NONE = {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
_EARLY_DOWN_IMATRIX = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(tensor: Tensor, kind: str) -> str:
    """The type, or what llama.cpp takes where the rows are no whole number of its blocks."""
    columns = tensor.shape[-1]
    if columns % GGML_TYPES[kind].block == 0:
        return kind
    smaller = _SMALLER.get(kind, kind)
    return "F16" if columns % GGML_TYPES[smaller].block else smaller
