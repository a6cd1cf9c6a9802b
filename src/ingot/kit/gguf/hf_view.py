"""A GGUF as a Hugging Face model: configuration, tensor names, shapes, maps.

The same description of an architecture that lays a GGUF out is read from right to left here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingot.errors import RefusedInput
from ingot.kit.gguf import maps
from ingot.kit.gguf.architectures import ALL, named
from ingot.kit.gguf.architectures.words import Architecture, Key, Sizes
from ingot.kit.gguf.hparams import sizes_of
from ingot.kit.gguf.layout import Place, places
from ingot.kit.gguf.reader import Gguf, TensorInfo
from ingot.kit.gguf.rope import ROPE_TENSORS
from ingot.kit.gguf.rope_view import rope_entries, shortest
from ingot.kit.gguf.tokenizer import Special
from ingot.kit.stream.vocabulary import Route, Slot


class GgufModel:
    """The Hugging Face view of a GGUF: ``config`` is its config.json, ``names()`` the transform of its tensors.

    RefusedInput on making one: E-ARCH (another architecture, experts, partial rotation), E-GGUF-KEY (a value is
    missing or odd), E-GGUF-TENSOR (tensors missing, unknown, or of a shape unlike the metadata),
    E-GGUF-SPLIT (one part of several), E-GGUF-ROPE (a frequency scaling that has no Hugging Face form here).
    """

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self._meta = gguf.metadata
        self.architecture = self._known()
        self._by_name = {info.name: info for info in gguf.tensors}
        self.config = self._config()
        self.sizes: Sizes = sizes_of(self.architecture, self.config, "E-GGUF-KEY", gguf.path.name)
        for name in self.architecture.implied:
            self.config.setdefault(name, self.architecture.implication(name, self.sizes)[0])
        self._refuse_partial()
        self.config |= rope_entries(self.architecture, gguf, self.sizes)
        self.places = self._places()

    def names(self) -> HfNames:
        """The transform that gives each tensor its Hugging Face name and form; a new one for each run."""
        return HfNames(self)

    @property
    def parameters(self) -> int:
        """How many weights the file holds, without the tensors that say how positions are scaled."""
        return sum(info.elements for info in self.gguf.tensors if info.name not in ROPE_TENSORS)

    def token_config(self, special: Special) -> dict[str, Any]:
        """generation_config.json: begin, end (also end of turn) and padding ids."""
        ends = [index for index in (special.eos, special.end_of_turn) if index is not None]
        ends = list(dict.fromkeys(ends))
        found = {
            "bos_token_id": special.bos,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": special.pad,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _known(self) -> Architecture:
        name = self._meta.get("general.architecture")
        found = named(name)
        if found is None:
            names = sorted({each.name for each in ALL})
            raise _arch(f"its architecture is {name!r}", hint=f"convert reads: {', '.join(names)}")
        if self._meta.get("split.count", 0) not in (0, 1):
            raise RefusedInput(
                "E-GGUF-SPLIT",
                f"{self.gguf.path.name} is one part of {self._meta['split.count']}",
                hint="join the parts with llama.cpp's gguf-split --merge",
            )
        if experts := self._meta.get(f"{name}.expert_count", 0):
            raise _arch(f"it is a mixture of {experts} experts")
        return found

    def _number(self, key: str) -> Any:
        """A positive number of the metadata, a float as short as it can be said; None where there is none."""
        name = f"{self.architecture.name}.{key}"
        value = self._meta.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise RefusedInput("E-GGUF-KEY", f"{self.gguf.path.name}: {name} is {value!r}, not a positive number")
        return shortest(value) if isinstance(value, float) else value

    def _config(self) -> dict[str, Any]:
        arch = self.architecture
        embedding = self._by_name.get("token_embd.weight")
        if embedding is None:
            raise RefusedInput("E-GGUF-TENSOR", f"{self.gguf.path.name} has no token_embd.weight")
        config: dict[str, Any] = {"architectures": [arch.model], "model_type": arch.model_type}
        for key in arch.keys:
            if isinstance(key, Key) and key.hf != "vocab_size":
                self._take(config, key)
            elif key == "window_or_0":
                config["sliding_window"] = self._meta.get(f"{arch.name}.attention.sliding_window") or None
        config["vocab_size"] = embedding.shape[0]
        config["tie_word_embeddings"] = self._tied(embedding)
        for flag in sorted({module.bias for module in arch.modules} - {"", "always"}):
            config[flag] = self._biased(flag)
        # what transformers would fill in may lie outside the vocabulary
        config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return {**config, "initializer_range": 0.02, "use_cache": True}

    def _take(self, config: dict[str, Any], key: Key) -> None:
        """One number of config.json; a key without a field has the size that llama.cpp takes then."""
        value = self._number(key.gguf)
        if value is None and key.size:
            value = self._implied_size(key.size)
        if value is None and not key.optional:
            name = f"{self.architecture.name}.{key.gguf}"
            raise RefusedInput("E-GGUF-KEY", f"{self.gguf.path.name}: {name} is None, not a positive number")
        if value is not None and config.setdefault(key.hf, value) != value:
            raise RefusedInput(
                "E-GGUF-KEY", f"{self.gguf.path.name} has two values for {key.hf}: {config[key.hf]} and {value}"
            )

    def _implied_size(self, size: str) -> int | None:
        hidden, heads = self._number("embedding_length"), self._number("attention.head_count")
        if hidden is None or heads is None:
            return None
        sizes: dict[str, int] = {"wide": 4 * hidden, "heads": heads, "head": hidden // heads}
        return sizes[size]

    def _tied(self, embedding: TensorInfo) -> bool:
        """Whether the output layer is the embedding: absent, or the same bytes of the same type."""
        output = self._by_name.get("output.weight")
        if output is None:
            return True
        same = (output.type, output.shape) == (embedding.type, embedding.shape)
        return same and np.array_equal(self.gguf.raw(output), self.gguf.raw(embedding))

    def _biased(self, flag: str) -> bool:
        """Whether the biases that come with a flag of config.json are there; one in the first layer tells."""
        biases = {module.gguf for module in self.architecture.modules if module.bias == flag}
        return any(f"{name.replace('.N.', '.0.')}.bias" in self._by_name for name in biases)

    def _refuse_partial(self) -> None:
        rotated = self._number("rope.dimension_count")
        if rotated is not None and not self.architecture.partial and rotated != self.sizes.head:
            raise _arch("only a part of each head is rotated")

    def _places(self) -> Mapping[str, Place]:
        """Every tensor of the model by its GGUF name; that of a tied output layer is there and not used."""
        known = {place.gguf: place for place in places(self.architecture, self.config, self.sizes)}
        for name, place in known.items():
            info = self._by_name.get(name)
            if info is None and place.required:
                raise RefusedInput("E-GGUF-TENSOR", f"{self.gguf.path.name} has no tensor {name}")
            if info is not None and info.shape != place.gguf_shape:
                raise RefusedInput(
                    "E-GGUF-TENSOR",
                    f"{self.gguf.path.name}: {name} has the shape {info.shape}, expected {place.gguf_shape}",
                )
        unknown = sorted(self._by_name.keys() - known.keys() - ROPE_TENSORS)
        if unknown:
            raise RefusedInput(
                "E-GGUF-TENSOR",
                f"{self.gguf.path.name} holds tensors that {self.architecture.model} does not have",
                facts=[f"{len(unknown)} of them: {', '.join(unknown[:6])}"],
            )
        return {name: place for name, place in known.items() if name in self._by_name}


class HfNames:
    """Tensors of a GGUF with the names, the order of rows and the values that transformers wants.

    ``plus_one`` cannot be undone to the last bit: w + 1 is rounded to float32, so w comes back within 2^-24 for |w| < 1
    and exactly where 1 + w has no more than 24 bits.
    """

    def __init__(self, model: GgufModel) -> None:
        self._model = model

    def begin(self, slots: Sequence[Slot]) -> None:
        """The file was looked through when it was opened."""

    def routes(self, slot: Slot) -> Sequence[Route]:
        """The tensor under its Hugging Face name; nothing for rope factors and a repeated tied embedding."""
        model = self._model
        place = model.places.get(slot.name)
        if place is None or (slot.name == "output.weight" and model.config["tie_word_embeddings"]):
            return []
        return [maps.route(slot, place.hf, place.map, model.sizes.head, back=True)]

    def finish(self) -> None:
        """Nothing shows only at the end."""


def _arch(what: str, hint: str | None = None) -> RefusedInput:
    return RefusedInput("E-ARCH", f"the GGUF cannot be converted: {what}", hint=hint)
