"""Quantized checkpoints as plain weights: dequantized one weight at a time by the library whose format it is.

compressed-tensors (packed and unpacked integers, 8-bit floats, several groups of modules) and bitsandbytes (four-bit
and LLM.int8). A weight comes out in the dtype that its checkpoint computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open

from ingot.core.digest import FileRecord, fast_hash_file
from ingot.core.stage import Given, Progress
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.quant import bnb
from ingot.kit.quant.library import decode, library_scheme
from ingot.kit.safetensors_check import Entry
from ingot.kit.stream.inputs import expected_files, open_input, written
from ingot.kit.stream.nonfinite import RefuseNonFinite
from ingot.kit.stream.verified import damaged, expectation
from ingot.kit.stream.vocabulary import Block, Slot, Weights

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
#: What stands for a weight, and what says how a layer's inputs are quantized (which plain weights do not).
_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_INPUTS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")

_UNQUANTIZED = "use the model that it was quantized from"

Load = Callable[[str], torch.Tensor]


class Format(Protocol):
    """A quantization format: what a checkpoint's tensors stand for."""

    def plain(self, name: str) -> str | None:
        """The plain weight that a tensor is, or is a part of; None for one that is left out."""

    def slot(self, name: str, load: Load) -> Slot | None:
        """The plain weight of that name; None where it lies in the file as it is."""

    def decode(self, name: str, load: Load) -> torch.Tensor:
        """That weight."""


def open_plain(given: Given, progress: Progress, *, finite: bool) -> tuple[Weights, str | None]:
    """The weights of role ``model`` as plain numbers, and the quantization that is undone on the way, if any.

    A weight is dequantized from several tensors that lie apart, so a quantized model that is virtual is written to
    scratch. RefusedInput: E-NONFINITE with ``finite``, E-QUANTIZED for a checkpoint that cannot be dequantized.
    """
    weights = open_input(given, "model", progress, finite=finite)
    method = quantization(hf.read_config(weights.folder))
    if method is None:
        return weights, None
    given, passed = written(given, "model", progress)
    folder = given.one("model")
    source = PlainSource(folder, expected_files(given, "model"))
    return Weights(source, folder, [RefuseNonFinite()] if finite else [], passed=passed), method


def quantization(config: Mapping[str, Any]) -> str | None:
    """The method by which config.json says that the weights are quantized, None where they are plain."""
    found = config.get("quantization_config")
    if found is None:
        return None
    return str(found.get("quant_method")) if isinstance(found, dict) else "unknown"


def iter_plain_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of a model folder with plain weights, quantized ones dequantized, one at a time.

    RefusedInput (E-QUANTIZED) for a format that is not known.
    """
    if quantization(hf.read_config(folder)) is None:
        yield from hf.iter_tensors(folder)
        return
    source = PlainSource(folder)
    for index, slot in enumerate(source.slots):
        yield slot.name, source.tensor(index)


class Plain(NamedTuple):
    """A plain weight of a model folder: its sizes, and what reads it when it is called."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def plain_weights(folder: Path) -> dict[str, Plain]:
    """Each plain weight of a model folder by its name; only headers are read, quantized ones are dequantized when read.

    Files stay open as long as one of the weights is at hand. RefusedInput (E-QUANTIZED, E-ST-*).
    """
    if quantization(hf.read_config(folder)) is not None:
        source = PlainSource(folder)
        return {
            slot.name: Plain(tuple(slot.shape), partial(source.tensor, index))
            for index, slot in enumerate(source.slots)
        }
    found: dict[str, Plain] = {}
    for path, entries in hf.files_with_entries(folder):
        file = safe_open(path, framework="pt")
        found |= {entry.name: Plain(tuple(entry.shape), partial(file.get_tensor, entry.name)) for entry in entries}
    return found


class PlainSource:
    """A quantized checkpoint as plain weights, one tensor at a time (see ``Source``).

    Its files are compared with ``expected`` before the first block: the parts of a weight lie far apart in them.
    """

    def __init__(self, folder: Path, expected: Mapping[str, FileRecord] | None = None) -> None:
        """RefusedInput (E-QUANTIZED) for another quantization format."""
        self._expected = expected
        found = list(hf.entries(folder))
        self._where = {entry.name: path for path, entry in found}
        entries = {entry.name: entry for _, entry in found}
        self._format = format_of(folder, entries)
        names = dict.fromkeys(self._format.plain(name) for name in entries)
        self._slots: list[Slot] = []
        self._coded: set[str] = set()
        for name in names:
            slot = None if name is None else self._format.slot(name, self._load)
            if slot is not None:
                self._coded.add(slot.name)
            elif name is not None:
                slot = Slot(name, tuple(entries[name].shape), entries[name].dtype)
            if slot is not None:
                self._slots.append(slot)

    @property
    def slots(self) -> Sequence[Slot]:
        """All tensors, in the order of their names."""
        return self._slots

    def tensor(self, index: int) -> torch.Tensor:
        """The tensor of a slot."""
        name = self._slots[index].name
        return self._format.decode(name, self._load) if name in self._coded else self._load(name)

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``. StoreDamaged (E-OBJECT-DAMAGED)."""
        for path in sorted(set(self._where.values())):
            record = expectation(path, self._expected)
            if record is not None and fast_hash_file(path) != record.xxh3_128:
                raise damaged(path, "has other content")
        for index, slot in enumerate(self._slots):
            tensor = self.tensor(index)
            for start in range(0, max(1, slot.rows), rows[index]):
                yield Block(index, start, tensor[start : start + rows[index]] if slot.shape else tensor)

    def _load(self, name: str) -> torch.Tensor:
        with safe_open(self._where[name], framework="pt") as file:
            tensor = file.get_tensor(name)
        assert isinstance(tensor, torch.Tensor)
        return tensor


def format_of(folder: Path, entries: Mapping[str, Entry]) -> Format:
    """The format of a quantized folder. RefusedInput (E-QUANTIZED) for one that cannot be read."""
    config = hf.read_config(folder)
    found = config.get("quantization_config")
    found = found if isinstance(found, dict) else {}
    if found.get("quant_method") == "compressed-tensors":
        return _Compressed(folder, found, entries)
    if found.get("quant_method") == "bitsandbytes":
        return bnb.Bitsandbytes(config, entries)
    raise RefusedInput(
        "E-QUANTIZED",
        "the model is quantized in a format that is not known here",
        facts=[f"quant_method: {found.get('quant_method')}", "known: compressed-tensors, bitsandbytes"],
        hint=_UNQUANTIZED,
    )


class _Compressed:
    """A compressed-tensors checkpoint; each module's scheme is the one that the library finds for it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._folder = folder
        groups = list((config.get("config_groups") or {}).values())
        formats = sorted({str(group.get("format") or config.get("format")) for group in groups})
        if not groups or not set(formats) <= set(_FORMATS):
            raise RefusedInput(
                "E-QUANTIZED",
                "this form of compressed-tensors cannot be read as plain weights",
                facts=[f"format {', '.join(formats) or config.get('format')}", f"known: {', '.join(_FORMATS)}"],
                hint=_UNQUANTIZED,
            )
        self._groups = [{**group, "format": group.get("format") or config.get("format")} for group in groups]
        self._schemes: dict[str, Any] | None = None

    def plain(self, name: str) -> str | None:
        """See ``Format``."""
        module, _, part = name.rpartition(".")
        if f"{module}.weight_scale" not in self._entries:
            return name
        return f"{module}.weight" if part in _PARTS else None if part in _INPUTS else name

    def slot(self, name: str, load: Load) -> Slot | None:
        """See ``Format``."""
        module = name.removesuffix(".weight")
        scale = self._entries.get(f"{module}.weight_scale")
        if not name.endswith(".weight") or scale is None:
            return None
        if f"{module}.weight_shape" in self._entries:
            shape = tuple(int(size) for size in load(f"{module}.weight_shape"))
        else:
            shape = tuple(self._entries[name].shape)
        return Slot(name, shape, scale.dtype)

    def decode(self, name: str, load: Load) -> torch.Tensor:
        """See ``Format``."""
        module = name.removesuffix(".weight")
        parts = [part for part in (*_PARTS, "weight") if f"{module}.{part}" in self._entries]
        return decode({part: load(f"{module}.{part}") for part in parts}, self._scheme(module))

    def _scheme(self, module: str) -> Any:
        if self._schemes is None:
            self._schemes = _schemes(self._folder, self._groups)
        try:
            return self._schemes[module]
        except KeyError:
            raise RefusedInput(
                "E-QUANTIZED", f"config.json has no scheme for {module!r}, whose weights are packed", hint=_UNQUANTIZED
            ) from None


def _schemes(folder: Path, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scheme of each module that a group means, in the library's order of precedence."""
    from compressed_tensors.utils.match import match_targets

    from ingot.kit.layers import skeleton

    by_target = {target: library_scheme(group) for group in groups for target in group["targets"]}
    found = {name: match_targets(name, module, by_target) for name, module in skeleton(folder).named_modules()}
    return {name: by_target[targets[0]] for name, targets in found.items() if targets}
