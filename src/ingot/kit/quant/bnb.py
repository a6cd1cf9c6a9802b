"""bitsandbytes' checkpoints (NF4 and LLM.int8), as transformers saves and loads them, weight by weight.

A four-bit weight ``W`` lies in the file as ``W`` (two codes a byte), ``W.absmax``, ``W.quant_map`` and
``W.quant_state.bitsandbytes__nf4`` (JSON as bytes), with double quantization also ``W.nested_absmax`` and
``W.nested_quant_map``; an eight-bit weight of module ``M`` as ``M.weight`` (int8), ``M.SCB`` (the largest of each row)
and ``M.weight_format``. The numbers are those of the library itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ingot.errors import RefusedInput, StageFailed
from ingot.kit import bitsandbytes_library
from ingot.kit.hf import torch_dtype
from ingot.kit.quant.rounding import Part, Rounding, Seen, Sums
from ingot.kit.quant.scheme import Scheme
from ingot.kit.safetensors_check import Entry
from ingot.kit.stream.vocabulary import DTYPE_NAMES, MapRows, Route, Slot

_BLOCK, _NESTED_BLOCK = 64, 256
#: JSON that holds a mean of the whole weight has a length that is known only at the end: it is filled up with spaces.
_STATE_BYTES = 256
_STATE = "quant_state.bitsandbytes__nf4"
#: The codes of NF4 lie at most this far apart, of which half, and as much again for quantized largest values.
_NF4_OFF = 0.16


def library() -> Any:
    """``bitsandbytes.functional``. MissingTool (E-MISSING-TOOL)."""
    return bitsandbytes_library.part("functional", "NF4 and INT8 checkpoints are made and read with it")


def quantization_config(scheme: str, dtype: str, skip: Sequence[str]) -> dict[str, Any]:
    """``quantization_config`` of config.json; ``skip`` are the linear layers that stay as they are."""
    modules = sorted(skip)  # never None, for which the library leaves out what it finds by itself
    if scheme == "NF4":
        config = bitsandbytes_library.nf4_config(dtype, modules)
    else:
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=modules)
    value = dict(config.to_dict())
    # What it derives from these when it is made again.
    return {key: item for key, item in value.items() if not key.startswith("_")}


@dataclass
class BnbRounding:
    """Makes of each chosen weight what stands for it in bitsandbytes' format; others pass through ``rest``.

    A whole weight is quantized at once: the largest values of its blocks are quantized around their mean. It is decoded
    by the library and compared: StageFailed (E-QUANTIZE-VERIFY).
    """

    schemes: Mapping[str, Scheme]
    rest: Rounding
    sums: Sums = field(default_factory=Sums)
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self._lib = library()
        self._last = threading.local()

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def finish(self) -> None:
        """See ``Transform``."""

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        scheme = self.schemes.get(slot.name.removesuffix(".weight")) if slot.name.endswith(".weight") else None
        if scheme is None:
            return self.rest.routes(slot)
        return self._four_bit(slot) if scheme.name == "NF4" else self._eight_bit(slot)

    def _four_bit(self, slot: Slot) -> list[Route]:
        count = slot.elements
        blocks = -(-count // _BLOCK)
        sizes = {
            "": ((-(-count // 2), 1), "U8"),
            ".absmax": ((blocks,), "U8"),
            ".nested_absmax": ((-(-blocks // _NESTED_BLOCK),), "F32"),
            ".nested_quant_map": ((256,), "F32"),
            ".quant_map": ((16,), "F32"),
            f".{_STATE}": ((_STATE_BYTES,), "U8"),
        }
        return [
            Route(Slot(f"{slot.name}{part}", shape, dtype), self._part(slot, part), whole=True, identity="quantize NF4")
            for part, (shape, dtype) in sizes.items()
        ]

    def _part(self, slot: Slot, part: str) -> MapRows:
        def made(rows: torch.Tensor, _start: int) -> torch.Tensor:
            if getattr(self._last, "name", None) != slot.name:
                self._last.parts, self._last.name = self._quantize(slot, rows), slot.name
            parts: dict[str, torch.Tensor] = self._last.parts
            if part == f".{_STATE}":  # the last of the routes
                self._last.parts, self._last.name = {}, None
            return parts[part]

        return made

    def _quantize(self, slot: Slot, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, state = self._lib.quantize_4bit(rows, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
        decoded = dequantized(codes, state)
        if not decoded.equal(self._lib.dequantize_4bit(codes, state)):
            raise RefusedInput(
                "E-QUANTIZE-SHAPE",
                f"bitsandbytes reads the four-bit weights of {slot.name!r} wrong on this CPU",
                facts=[
                    f"shape {slot.shape}: its kernel fails on some rows that are no whole number of {_BLOCK} weights"
                ],
                hint="name this module under 'ignore', or under 'overrides' with FP16 or BF16",
            )
        largest = _per_block(rows)
        self._compare(slot, 0, rows, decoded, largest * (_NF4_OFF + torch.finfo(rows.dtype).eps))
        stated = {
            "quant_type": "nf4", "blocksize": _BLOCK, "dtype": str(rows.dtype).removeprefix("torch."),
            "shape": list(rows.shape), "nested_blocksize": _NESTED_BLOCK, "nested_dtype": "float32",
            "nested_offset": state.offset.item(),
        }  # fmt: skip
        text = json.dumps(stated).encode().ljust(_STATE_BYTES)
        return {
            "": codes,
            ".absmax": state.absmax,
            ".nested_absmax": state.state2.absmax,
            ".nested_quant_map": state.state2.code,
            ".quant_map": state.code,
            f".{_STATE}": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }

    def _eight_bit(self, slot: Slot) -> list[Route]:
        module, rows = slot.name.removesuffix(".weight"), slot.shape[0]
        identity, row_major = "quantize INT8", torch.tensor(0, dtype=torch.uint8)
        return [
            Route(replace(slot, dtype="I8"), self._integers(slot), identity=identity),
            Route(Slot(f"{module}.SCB", (rows,), "F32"), self._largest(slot), identity=identity),
            Route(Slot(f"{module}.weight_format", (), "U8"), lambda _rows, _start: row_major, once=True),
        ]

    def _integers(self, slot: Slot) -> MapRows:
        def integers(rows: torch.Tensor, start: int) -> torch.Tensor:
            values, largest = self._vectorwise(slot, rows, start)
            decoded = self._lib.int8_vectorwise_dequant(values, largest).to(rows.dtype)
            step = (largest / 127).float().unsqueeze(1)
            # half a step for the integer; the library rounds to float16 first, and we to the weights' dtype after
            bound = step * 0.501 + rows.float().abs() * (2.0**-11 + torch.finfo(rows.dtype).eps)
            self._compare(slot, start, rows, decoded, bound)
            return values

        return integers

    def _largest(self, slot: Slot) -> MapRows:
        return lambda rows, start: self._vectorwise(slot, rows, start)[1]

    def _vectorwise(self, slot: Slot, rows: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers and the largest of each row; both routes of a weight ask for them, on one thread."""
        where = slot.name, start, rows.shape[0]
        if getattr(self._last, "where", None) != where:
            self._last.vectors, self._last.where = self._rounded(slot, rows), where
        found: tuple[torch.Tensor, torch.Tensor] = self._last.vectors
        return found

    def _rounded(self, slot: Slot, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = rows.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise RefusedInput(
                "E-DTYPE-RANGE",
                f"tensor {slot.name} holds weights beyond what float16 can hold, which LLM.int8 passes them through",
                hint="use 'scheme: W8A8' or 'W8A16'",
            )
        values, largest, _ = self._lib.int8_vectorwise_quant(half)
        return values, largest.float()

    def _compare(self, slot: Slot, start: int, rows: torch.Tensor, decoded: torch.Tensor, bound: torch.Tensor) -> None:
        scheme = self.schemes[slot.name.removesuffix(".weight")].name
        off = (rows.float() - decoded.float()).abs()
        if not bool((off <= bound).all()):
            raise StageFailed(
                "E-QUANTIZE-VERIFY",
                f"{slot.name!r} reads back further from its weights than {scheme} explains",
                facts=[f"largest error {float(off.max()):.3g}"],
            )
        error, weight = float(off.double().square().sum()), float(rows.double().square().sum())
        self.sums.add((slot.name, start), Part(scheme, rows.numel(), error, weight, None))
        self.seen.add(slot.name, start, decoded)


def dequantized(codes: torch.Tensor, state: Any) -> torch.Tensor:
    """Four-bit weights as numbers, read as one row.

    Of some rows that are no whole number of blocks the library's kernel for a CPU takes the wrong largest values.
    """
    shape = state.shape
    state.shape = torch.Size([shape.numel()])
    try:
        found: torch.Tensor = library().dequantize_4bit(codes.reshape(-1, 1), state)
    finally:
        state.shape = shape
    return found.reshape(shape)


def refuse_misread(model: Any) -> None:
    """RefusedInput (E-QUANTIZED) for a loaded model with four-bit weights that the library reads wrong here."""
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        state, codes = module.weight.quant_state, module.weight.data
        if module.in_features % state.blocksize and not dequantized(codes, state).equal(
            library().dequantize_4bit(codes, state)
        ):
            raise RefusedInput(
                "E-QUANTIZED",
                f"bitsandbytes reads the four-bit weights of {name!r} wrong on this CPU",
                facts=[f"{module.in_features} inputs, blocks of {state.blocksize}"],
                hint="'kind: convert' makes plain weights of the model",
            )


def _per_block(rows: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each weight's block, and a little of the whole's: they are quantized, too."""
    flat = rows.float().abs().flatten()
    filled = torch.nn.functional.pad(flat, (0, -flat.numel() % _BLOCK)).view(-1, _BLOCK)
    largest = filled.amax(dim=1, keepdim=True)
    return (largest + largest.amax() / 16).expand_as(filled).flatten()[: flat.numel()].view(rows.shape)


class Bitsandbytes:
    """A checkpoint of bitsandbytes, read (see ``plain.Format``)."""

    def __init__(self, config: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        stated = config.get("dtype") or config.get("torch_dtype") or "float16"
        self._dtype = torch_dtype(str(stated))
        self._four: dict[str, str] = {}
        for name in entries:
            weight, _, kind = name.partition(".quant_state.bitsandbytes__")
            if kind:
                self._four[weight] = kind
        self._states: dict[str, dict[str, Any]] = {}

    def plain(self, name: str) -> str | None:
        """See ``plain.Format``."""
        module, _, part = name.rpartition(".")
        if part in {"SCB", "weight_format"} and f"{module}.weight" in self._entries:
            return f"{module}.weight"
        weight = f"{name.partition('.weight.')[0]}.weight"
        return weight if weight in self._four else name

    def slot(self, name: str, load: Callable[[str], torch.Tensor]) -> Slot | None:
        """See ``plain.Format``."""
        if name in self._four:
            stated = json.loads(bytes(load(f"{name}.quant_state.bitsandbytes__{self._four[name]}").numpy().tobytes()))
            return Slot(name, tuple(stated["shape"]), DTYPE_NAMES[torch_dtype(stated["dtype"])])
        if f"{name.removesuffix('.weight')}.SCB" in self._entries:
            return Slot(name, tuple(self._entries[name].shape), DTYPE_NAMES[self._dtype])
        return None

    def decode(self, name: str, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """See ``plain.Format``."""
        functional = library()
        if name not in self._four:
            largest = load(f"{name.removesuffix('.weight')}.SCB")
            whole: torch.Tensor = functional.int8_vectorwise_dequant(load(name), largest).to(self._dtype)
            return whole
        parts = {part.removeprefix(f"{name}."): load(part) for part in self._entries if part.startswith(f"{name}.")}
        state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
        return dequantized(load(name), state)
