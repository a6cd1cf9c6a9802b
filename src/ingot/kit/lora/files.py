"""An adapter's files: PEFT's two, written with the same bytes every time, and ingot's record beside them.

``ingot_adapter.json`` says what the adapter was trained on, by content: ``{"format": 1, "base_digest": the artifact
digest of the base, "quantization": null or what was done to the base's linear layers before training}``. PEFT records
neither, so an adapter from elsewhere has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ingot.core.digest import is_digest
from ingot.errors import RefusedInput
from ingot.kit import hf

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "ingot_adapter.json"


@dataclass(frozen=True)
class Quantization:
    """The quantization an adapter was trained over: bitsandbytes' four-bit kinds.

    ``dtype`` is the one the weights had when they were quantized; None: the base's own. ``identity`` is what
    ``kit.lora.nf4.identity`` gave where it was trained; None: not recorded.
    """

    method: str
    blocksize: int = 64
    double_quant: bool = True
    dtype: str | None = None
    identity: str | None = None

    def shown(self) -> str:
        """One line for a person, without the identity."""
        return f"{self.method}, blocks of {self.blocksize}, double_quant {str(self.double_quant).lower()}" + (
            f", from {self.dtype}" if self.dtype else ""
        )


@dataclass(frozen=True)
class Record:
    """What an adapter says it was trained on. ``known`` is whether it says anything about quantization at all."""

    base_digest: str | None = None
    quantization: Quantization | None = None
    known: bool = False


def write_adapter(
    out: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], record: Record | None = None
) -> None:
    """Write an adapter: sets sorted, the base's path dropped, no model card.

    PEFT itself writes sets in the order of string hashes, which changes from process to process.
    """
    clean = {key: _plain(value) for key, value in config.items()}
    clean.update(base_model_name_or_path=None, revision=None, inference_mode=True)
    hf.write_json(out / CONFIG, clean)
    hf.write_safetensors(out / WEIGHTS, dict(tensors))
    if record is not None:
        write_record(out, record)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return getattr(value, "value", value)


def write_record(out: Path, record: Record) -> None:
    """Write ``ingot_adapter.json``: content only, no path and no name of a model."""
    done = record.quantization
    quantization = None if done is None else {
        "method": done.method, "blocksize": done.blocksize, "double_quant": done.double_quant, "dtype": done.dtype,
        "identity": done.identity,
    }  # fmt: skip
    hf.write_json(out / RECORD, {"format": 1, "base_digest": record.base_digest, "quantization": quantization})


def read_record(folder: Path) -> Record:
    """What the adapter says it was trained on; an empty record when it says nothing. RefusedInput (E-MERGE-RECORD)."""
    path = folder / RECORD
    if not path.is_file():
        return Record()
    found = hf.read_json_file(path)
    base, quantization = found.get("base_digest"), found.get("quantization")
    if found.get("format") != 1 or set(found) != {"format", "base_digest", "quantization"}:
        raise _bad("it is not of format 1 with exactly base_digest and quantization")
    if base is not None and not is_digest(base):
        raise _bad("base_digest is not a digest")
    return Record(base, None if quantization is None else _quantization(quantization), known=True)


def _quantization(value: object) -> Quantization:
    if not isinstance(value, dict) or not set(value) <= set(Quantization.__dataclass_fields__):
        raise _bad("quantization holds other fields than method, blocksize, double_quant, dtype and identity")
    found = Quantization(**{"method": "", **value})
    texts = (found.dtype, found.identity)
    sound = found.method in ("nf4", "fp4") and type(found.blocksize) is int and type(found.double_quant) is bool
    if not sound or not all(text is None or isinstance(text, str) for text in texts):
        raise _bad(f"quantization is not one that can be repeated: {str(value)[:200]}")
    return found


def _bad(why: str) -> RefusedInput:
    return RefusedInput(
        "E-MERGE-RECORD",
        f"the adapter's {RECORD} cannot be used: {why}",
        hint="remove the file, and state 'quantization' in the spec if the base was quantized in training",
    )
