"""compressed-tensors checkpoints: integer weights per row or per group, written and read tensor by tensor.

The format is that of the ``compressed-tensors`` library (``pack-quantized``): for a linear layer ``L`` the file
holds ``L.weight_packed`` (int32, the values offset by 2^(bits-1) and laid end to end), ``L.weight_scale`` and
``L.weight_shape``. Transformers and vLLM load it. Reading goes through the library itself, so other schemes of the
format come out right, too; 8-bit packing is done here, being a plain view of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ingot.core.digest import FileRecord, fast_hash_file
from ingot.errors import RefusedInput
from ingot.kit import hf
from ingot.kit.stream.verified import damaged, expectation
from ingot.kit.stream.vocabulary import Block, Slot

_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_LEVELS = 127  # symmetric: -127 … 127, so that a weight and its negative are treated alike


def config_of(group_size: int | None, ignore: Sequence[str]) -> dict[str, Any]:
    """``quantization_config`` of W8A16: symmetric int8 weights, per output row or per group of inputs."""
    from compressed_tensors.quantization import QuantizationConfig

    weights: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    config = QuantizationConfig.model_validate(
        {
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}},
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": sorted(ignore),
        }
    )
    return dict(config.model_dump(mode="json", exclude_none=True))


def scales_of(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """Scales (rows × groups) in the dtype of ``weight``: the smallest of that dtype with ``127·s ≥ max|w|``.

    Rounding a scale down would clip the largest weight by more than half a step, so it is rounded up. A group of
    zeros has scale 1. RefusedInput (E-QUANTIZE-VALUE) for weights that are not finite, or too large for the scale.
    """
    peaks = _grouped(weight.float(), group_size).abs().amax(dim=-1)
    if not bool(torch.isfinite(peaks).all()):
        raise RefusedInput(
            "E-QUANTIZE-VALUE", "a weight is not a finite number", facts=[f"shape {tuple(weight.shape)}"]
        )
    exact = peaks / _LEVELS
    scale = exact.to(weight.dtype)
    # products of an 8-bit and a 7-bit integer part are exact in fp64, so the comparison is, too
    short = scale.double() * _LEVELS < peaks.double()
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    return torch.where(peaks == 0, torch.ones_like(scale), scale)


def quantize(weight: torch.Tensor, scale: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """Nearest integers of ``w / s`` in -127 … 127 (int8, the shape of ``weight``), computed in fp32, ties to even."""
    parts = _grouped(weight.float(), group_size) / scale.float().unsqueeze(-1)
    return parts.round().clamp(-_LEVELS, _LEVELS).to(torch.int8).reshape(weight.shape)


def _grouped(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    size = weight.shape[1] if group_size is None else group_size
    return weight.reshape(weight.shape[0], -1, size)


def pack(values: torch.Tensor) -> torch.Tensor:
    """int8 values as the format's int32 words: offset by 128, little-endian, rows filled up with zero bytes."""
    rows, columns = values.shape
    filled = torch.zeros(rows, -(-columns // 4) * 4, dtype=torch.uint8)
    filled[:, :columns] = (values.to(torch.int16) + 128).to(torch.uint8)
    return filled.view(torch.int32)


def is_compressed(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that the weights are a compressed-tensors checkpoint."""
    found = config.get("quantization_config")
    return isinstance(found, dict) and found.get("quant_method") == "compressed-tensors"


def iter_plain_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of a model folder with plain weights, quantized ones dequantized, one at a time.

    A dequantized weight has the dtype of its scale. RefusedInput (E-QUANTIZED) for another quantization format.
    """
    config = hf.read_config(folder)
    if not config.get("quantization_config"):
        yield from hf.iter_tensors(folder)
    else:
        yield from dequantize_model(folder)


def dequantize_model(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors of a compressed-tensors checkpoint, one at a time, in the order of its own names."""
    config = hf.read_config(folder)
    if not is_compressed(config):
        raise _other_format(config)
    scheme = _scheme(config["quantization_config"])
    where = {entry.name: path for path, entry in hf.entries(folder)}
    for name in _plain_names(where):
        module = name.removesuffix(".weight")
        yield name, _load(where, name) if name in where else _decode(module, where, scheme)


def _other_format(config: Mapping[str, Any]) -> RefusedInput:
    found = config.get("quantization_config") or {}
    return RefusedInput(
        "E-QUANTIZED",
        "the model is not a compressed-tensors checkpoint",
        facts=[f"quant_method: {found.get('quant_method')}"],
    )


class CompressedSource:
    """A compressed-tensors checkpoint as plain weights, one tensor at a time (see ``Source``).

    Its files are compared with ``expected`` before the first block: the parts of a weight lie far apart in them.
    """

    def __init__(self, folder: Path, expected: Mapping[str, FileRecord] | None = None) -> None:
        """RefusedInput (E-QUANTIZED) for another quantization format."""
        config = hf.read_config(folder)
        if not is_compressed(config):
            raise _other_format(config)
        self._expected = expected
        self._scheme = _scheme(config["quantization_config"])
        found = list(hf.entries(folder))
        self._where = {entry.name: path for path, entry in found}
        entries = {entry.name: entry for _, entry in found}
        self._names: list[str] = []
        self._slots: list[Slot] = []
        for name in _plain_names(self._where):
            if name in entries:
                shape, dtype = tuple(entries[name].shape), entries[name].dtype
            else:
                module = name.removesuffix(".weight")
                shape = tuple(int(size) for size in _load(self._where, f"{module}.weight_shape"))
                dtype = entries[f"{module}.weight_scale"].dtype
            self._names.append(name)
            self._slots.append(Slot(name, shape, dtype))

    @property
    def slots(self) -> Sequence[Slot]:
        """All tensors, in the order of their names."""
        return self._slots

    def blocks(self, rows: Sequence[int]) -> Iterator[Block]:
        """See ``Source``. StoreDamaged (E-OBJECT-DAMAGED)."""
        for path in sorted(set(self._where.values())):
            record = expectation(path, self._expected)
            if record is not None and fast_hash_file(path) != record.xxh3_128:
                raise damaged(path, "has other content")
        for index, (name, slot) in enumerate(zip(self._names, self._slots, strict=True)):
            module = name.removesuffix(".weight")
            packed = name not in self._where
            tensor = _decode(module, self._where, self._scheme) if packed else _load(self._where, name)
            for start in range(0, max(1, slot.rows), rows[index]):
                yield Block(index, start, tensor[start : start + rows[index]] if slot.shape else tensor)


def _plain_names(where: Mapping[str, Path]) -> Iterator[str]:
    for name in where:
        module, _, part = name.rpartition(".")
        if part == "weight_packed":
            yield f"{module}.weight"
        elif f"{module}.weight_packed" not in where or part not in _PARTS:
            yield name


def _scheme(config: Mapping[str, Any]) -> Any:
    from compressed_tensors.quantization import QuantizationConfig

    groups = list(QuantizationConfig.model_validate(dict(config)).config_groups.values())
    if len(groups) != 1 or config.get("format") != "pack-quantized":
        raise RefusedInput(
            "E-QUANTIZED",
            "only pack-quantized checkpoints with one group of layers can be read as plain weights",
            facts=[f"format {config.get('format')}, {len(groups)} groups"],
        )
    return groups[0]


def decoder(group_size: int | None) -> Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]:
    """What makes weights again of packed values, scales and the weights' shape: the format's own library."""
    scheme = _scheme(config_of(group_size, []))
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry("pack-quantized")

    def decode(packed: torch.Tensor, scale: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        parts = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(list(shape))}
        weight = compressor.decompress(parts, scheme)["weight"]
        assert isinstance(weight, torch.Tensor)
        return weight

    return decode


def _decode(module: str, where: Mapping[str, Path], scheme: Any) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor

    state = {part: _load(where, f"{module}.{part}") for part in _PARTS if f"{module}.{part}" in where}
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    weight = compressor.decompress(state, scheme)["weight"]
    assert isinstance(weight, torch.Tensor)
    return weight


def _load(where: Mapping[str, Path], name: str) -> torch.Tensor:
    with safe_open(where[name], framework="pt") as file:
        tensor = file.get_tensor(name)
    assert isinstance(tensor, torch.Tensor)
    return tensor
