"""A model as a GGUF file of it is laid out: names, shapes, maps, types and fields, before a byte is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ingot.errors import RefusedInput
from ingot.kit.gguf import maps
from ingot.kit.gguf.architectures import architecture_of
from ingot.kit.gguf.architectures.words import Architecture, Config, Key, Map, Module, Part, Sizes
from ingot.kit.gguf.hparams import completed, sizes_of
from ingot.kit.gguf.rope import Rope, longrope_fields, rope_of, rope_tensors, scaling_fields
from ingot.kit.gguf.writer import Field, f32, text, u32
from ingot.kit.stream.vocabulary import Route, Slot

#: Models of transformers that heed ``sliding_window``, and for which llama.cpp does not.
_WINDOWS = frozenset({"mistral", "phi3", "qwen2", "qwen3", "smollm3"})


@dataclass(frozen=True)
class Place:
    """One tensor in both worlds: its names and shapes, and what maps the first to the second.

    ``required``: a model without it is no whole model. ``flag``: the switch of config.json that it comes with.
    """

    hf: str
    gguf: str
    hf_shape: tuple[int, ...]
    gguf_shape: tuple[int, ...]
    map: Map
    required: bool
    flag: str = ""


def places(arch: Architecture, config: Config, sizes: Sizes) -> list[Place]:
    """Every tensor that a model of this configuration may have."""
    found = []
    for module in arch.modules:
        numbers: Sequence[int | None] = range(sizes.layers) if "N" in module.gguf.split(".") else [None]
        for number in numbers:
            found += _places(arch, module, config, sizes, number)
    return found


def _places(arch: Architecture, module: Module, config: Config, sizes: Sizes, number: int | None) -> list[Place]:
    hf = module.hf.replace("*", arch.prefixes[0])
    gguf = module.gguf
    if number is not None:
        hf, gguf = hf.replace(".N.", f".{number}."), gguf.replace(".N.", f".{number}.")
    shape = tuple(sizes.of(name) for name in module.shape)
    turned = shape[::-1] if module.map == "transposed" else shape
    required = module.gguf != "output" or not config.get("tie_word_embeddings")
    found = [Place(f"{hf}.weight", f"{gguf}.weight", turned, shape, module.map, required)]
    if module.bias == "always" or config.get(module.bias):
        bias: Map = "rotary" if module.map == "rotary" else "same"
        found.append(Place(f"{hf}.bias", f"{gguf}.bias", shape[:1], shape[:1], bias, required=True, flag=module.bias))
    return found


def size_label(parameters: int) -> str:
    """The size class of a model as GGUF's naming convention writes it: ``260K``, ``135M``, ``1.2B``."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    unit, suffix = next((pair for pair in units if parameters > pair[0]), units[-1])
    scaled = parameters / unit
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


class Layout:
    """What a GGUF of one model holds, told by its config.json alone."""

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.config: Config = config
        self.sizes = sizes_of(architecture, config)
        self.rope: Rope = rope_of(architecture, config)
        self.places = tuple(places(architecture, config, self.sizes))

    @property
    def arch(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.architecture.name

    def expected(self) -> set[str]:
        """The GGUF names of all tensors that the model itself must have (``extra`` not among them)."""
        return {place.gguf for place in self.places if place.required}

    def extra(self) -> Mapping[str, torch.Tensor]:
        """Tensors that no checkpoint holds, float32, in the order in which they stand before all others."""
        return rope_tensors(self.rope, self.sizes)

    def limits(self) -> tuple[str, ...]:
        """Sentences on where llama.cpp and transformers part ways on this model though the file says all it can."""
        found, original = [], self.rope.original_context
        if window := self._unsaid_window():
            what = f"llama.cpp attends to all positions, transformers to the last {window}"
            found.append(f"{what}: they agree up to that length")
        if self.rope.kind == "longrope" and original < self.sizes.context:
            what = f"llama.cpp takes the long factors of positions once its context is longer than {original}"
            found.append(f"{what}, transformers once a text is")
        return tuple(found)

    def _unsaid_window(self) -> int:
        """How far some layers look back where the file cannot say it; 0 where none does, or no text is longer."""
        window = int(self.config.get("sliding_window") or 0)
        types = self.config.get("layer_types") or ["sliding_attention"]
        known = self.architecture.windowed or self.architecture.model_type not in _WINDOWS
        return 0 if known or window >= self.sizes.context or "sliding_attention" not in types else window

    def plain_type(self, name: str, shape: Sequence[int], wanted: str) -> str:
        """The type of an unquantized tensor where ``wanted`` is asked: vectors, norms and biases stay F32."""
        always = len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight")
        return "F32" if always or name in self.architecture.f32 else wanted

    def fields(self, file_type: int, parameters: int) -> list[Field]:
        """The general fields and the sizes in the order of the reference converter; no tokenizer.

        ``file_type`` is the number of llama.cpp's ``llama_ftype``; ``parameters`` how many weights the model's tensors
        in the file have (``extra`` not among them).
        """
        label = size_label(parameters + sum(tensor.numel() for tensor in self.extra().values()))
        fields = [
            text("general.architecture", self.arch),
            *longrope_fields(self.architecture, self.rope, self.sizes),
            text("general.type", "model"),
            text("general.size_label", label),
        ]
        for key in self.architecture.keys:
            fields += self._key(key) if isinstance(key, Key) else self._part(key, file_type)
        return [*fields, u32("general.quantization_version", 2)]

    def names(self) -> GgufNames:
        """The transform that gives each tensor its GGUF name and form; a new one for each run."""
        return GgufNames(self)

    def _key(self, key: Key) -> list[Field]:
        value = self.config.get(key.hf)
        if value is None and key.size:
            value = self.sizes.of(key.size)
        if value is None:
            if key.optional:
                return []
            raise RefusedInput("E-GGUF-ARCH", f"config.json does not state {key.hf!r}, which llama.cpp needs")
        name = f"{self.arch}.{key.gguf}"
        return [u32(name, int(value)) if key.kind == "u32" else f32(name, float(value))]

    def _part(self, part: Part, file_type: int) -> list[Field]:
        name, rope = self.arch, self.rope
        if part == "scaling":
            return scaling_fields(self.architecture, rope)
        if part == "theta":
            return [f32(f"{name}.rope.freq_base", rope.theta)]
        if part == "local_theta":
            return [] if rope.local_theta is None else [f32(f"{name}.rope.freq_base_swa", rope.local_theta)]
        key, value = {
            "rotated": (f"{name}.rope.dimension_count", self.sizes.rotated),
            "original_context": (f"{name}.rope.scaling.original_context_length", rope.original_context),
            "window_or_0": (f"{name}.attention.sliding_window", self.config.get("sliding_window") or 0),
            "file_type": ("general.file_type", file_type),
        }[part]
        return [u32(key, value)]


def gguf_layout(config: Mapping[str, Any]) -> Layout:
    """The layout of the model with this config.json.

    RefusedInput: E-GGUF-ARCH for an architecture that is not known, a configuration that lacks a size, or one that
    llama.cpp would compute differently; E-GGUF-ROPE for a scaling of positions that it does not have.
    """
    arch = architecture_of(config)
    full = completed(arch, config)
    layout = Layout(arch, full)
    for name in arch.implied:
        values = arch.implication(name, layout.sizes)
        if (given := full.get(name, values[0])) not in values:
            raise _unlike(arch, f"{name}: {_short(given)}", f"llama.cpp computes it as {name}: {_short(values[0])}")
    return layout


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) < 80 else f"{said[:76]} …"


def _unlike(arch: Architecture, what: str, fact: str) -> RefusedInput:
    return RefusedInput("E-GGUF-ARCH", f"this {arch.model} cannot be said in a GGUF: it has {what}", facts=[fact])


class GgufNames:
    """Hugging Face tensors with the names, the order of rows and the values that llama.cpp wants.

    RefusedInput (E-GGUF-TENSOR) for a tensor that the configuration does not have, one of another shape, and, before
    the first byte, for a model that lacks tensors.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._places = {place.hf: place for place in layout.places}

    def begin(self, slots: Sequence[Slot]) -> None:
        """Refuse a model that is not whole, or names one tensor twice."""
        found = [place.gguf for slot in slots if (place := self._place(slot.name)) is not None]
        missing = sorted(self._layout.expected() - set(found))
        if missing:
            raise RefusedInput(
                "E-GGUF-TENSOR",
                f"the model lacks {len(missing)} tensors, first {missing[0]!r}",
                facts=["names as in GGUF"],
            )
        for name, count in Counter(found).items():
            if count > 1:
                raise RefusedInput("E-GGUF-TENSOR", f"the model holds {name!r} twice, under two names")

    def routes(self, slot: Slot) -> Sequence[Route]:
        """The tensor under its GGUF name; nothing for one that holds no weights."""
        place = self._place(slot.name)
        if place is None:
            return []
        if slot.shape != place.hf_shape:
            raise RefusedInput(
                "E-GGUF-TENSOR", f"{slot.name} has the shape {slot.shape}, config.json says {place.hf_shape}"
            )
        return [maps.route(slot, place.gguf, place.map, self._layout.sizes.head, back=False)]

    def finish(self) -> None:
        """Nothing shows only at the end."""

    def _place(self, name: str) -> Place | None:
        arch = self._layout.architecture
        if name.endswith(arch.skipped):
            return None
        if name in self._places:
            return self._places[name]
        for prefix in arch.prefixes[1:]:
            if name.startswith(prefix) and (place := self._places.get(arch.prefixes[0] + name[len(prefix) :])):
                return place
        raise RefusedInput("E-GGUF-TENSOR", f"the model holds a tensor that its {arch.name} does not have: {name!r}")
