"""Core ML packages: converted by coremltools, made canonical, read back.

A package is ``model.mlpackage/Manifest.json`` and ``Data/com.apple.CoreML/`` with ``model.mlmodel`` (protobuf) and
``weights/weight.bin``. coremltools stamps random identifiers and the date; here identifiers come from the content and
the protobuf is serialized deterministically, so equal programs are equal bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import coremltools as ct
import numpy as np
import torch
from coremltools import optimize
from coremltools.proto import MIL_pb2

from ingot.errors import StageFailed
from ingot.kit.coreml.prefill import Prefill
from ingot.kit.hf import write_json

INPUT, OUTPUT = "input_ids", "logits"
Precision = Literal["float16", "float32"]

_ROOT = Path("Data") / "com.apple.CoreML"
_QUANTIZE = "compression::linear_quantize_weights"
_DATE = "com.github.apple.coremltools.conversion_date"
_SIZES = {"FLOAT32": 4, "FLOAT16": 2, "INT8": 1, "UINT8": 1, "INT32": 4, "BOOL": 1, "STRING": 0, "UINT16": 2}


@dataclass(frozen=True)
class Settings:
    """How to convert: input lengths, what computes, how matrices are stored, from which system on it runs."""

    lengths: tuple[int, ...]
    precision: Precision
    int8: bool
    target: str


def convert(module: Prefill, settings: Settings) -> Any:
    """The module as a coremltools model (an ML program): traced once, converted, quantized where asked for."""
    lengths = sorted(settings.lengths)
    module.whole = len(lengths) == 1
    example = torch.zeros((1, lengths[0]), dtype=torch.int32)
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
    shapes = [(1, length) for length in lengths]
    shape = shapes[0] if len(shapes) == 1 else ct.EnumeratedShapes(shapes=shapes, default=shapes[0])
    number = np.float16 if settings.precision == "float16" else np.float32
    return ct.convert(
        traced,
        source="pytorch",
        convert_to="mlprogram",
        inputs=[ct.TensorType(name=INPUT, shape=shape, dtype=np.int32)],
        outputs=[ct.TensorType(name=OUTPUT, dtype=number)],
        minimum_deployment_target=getattr(ct.target, settings.target),
        compute_precision=getattr(ct.precision, settings.precision.upper()),
        pass_pipeline=_pipeline(settings),
        skip_model_load=True,
    )


def _pipeline(settings: Settings) -> Any:
    """coremltools' own passes; for int8 also symmetric quantization of all matrices with one scale a row.

    The tables of positions stay as they are. Quantizing at the end of the one conversion, rather than a finished
    model, saves reading, optimizing and writing it a second time.
    """
    pipeline = ct.PassPipeline.DEFAULT
    if not settings.int8:
        return pipeline
    config = optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    kinds = {"linear": config, "gather": config}
    pipeline.append_pass(_QUANTIZE)
    pipeline.set_options(_QUANTIZE, {"config": optimize.coreml.OptimizationConfig(op_type_configs=kinds)})
    return pipeline


def save(model: Any, package: Path) -> None:
    """Write a package in canonical form: no date, identifiers from the content, deterministic protobuf."""
    model.save(str(package))
    path = package / _ROOT / "model.mlmodel"
    spec = ct.utils.load_spec(str(path))
    spec.description.metadata.userDefined.pop(_DATE, None)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    write_json(package / "Manifest.json", _manifest(package))
    for folder in (package / _ROOT).iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)


def _manifest(package: Path) -> dict[str, object]:
    entries = {}
    for name, what in (("model.mlmodel", "CoreML Model Specification"), ("weights", "CoreML Model Weights")):
        if (package / _ROOT / name).exists():
            entries[_identifier(package / _ROOT / name)] = {
                "author": "com.apple.CoreML",
                "description": what,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(package / _ROOT / "model.mlmodel"),
    }


def _identifier(path: Path) -> str:
    """A UUID (version 8 of RFC 9562) from the name and bytes of a file, or of all files of a folder."""
    digest = hashlib.sha256(path.name.encode() + b"\0")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    value = int.from_bytes(digest.digest()[:16], "big")
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return str(uuid.UUID(int=value)).upper()


@dataclass(frozen=True)
class Facts:
    """What a saved package says: operations other than constants, and stored weight bytes by type."""

    operations: int
    operation_kinds: int
    weight_bytes: dict[str, int]


def check(package: Path, shape: tuple[int, ...], settings: Settings) -> Facts:
    """Read a saved package back: interface, types of the matrices, no reference outside of it.

    StageFailed (E-COREML-SELFCHECK) when it is not what was asked for.
    """
    # the protobuf alone: coremltools rewrites the manifest of a package that it opens
    spec = ct.utils.load_spec(str(package / _ROOT / "model.mlmodel"))
    _check_interface(spec, settings)
    operations = list(_operations(spec))
    kinds = Counter(operation.type for operation in operations)
    stored: Counter[str] = Counter()
    for operation in operations:
        for value in _stored_values(operation):
            kind = MIL_pb2.DataType.Name(value.type.tensorType.dataType)
            count = prod(size.constant.size for size in value.type.tensorType.dimensions)
            stored[kind.lower()] += count * _SIZES[kind]
            if value.blobFileValue.fileName != "@model_path/weights/weight.bin":
                raise _failed(f"a weight lies outside of the package: {value.blobFileValue.fileName}")
    wanted = "int8" if settings.int8 else settings.precision
    if stored[wanted] < prod(shape) * _SIZES[wanted.upper()]:
        raise _failed(f"the matrices are not stored as {wanted}", *(f"{k}: {n} bytes" for k, n in stored.items()))
    real = {kind: n for kind, n in kinds.items() if kind != "const" and not kind.startswith("constexpr_")}
    return Facts(sum(real.values()), len(real), dict(sorted(stored.items())))


def _check_interface(spec: Any, settings: Settings) -> None:
    inputs, outputs = spec.description.input, spec.description.output
    names = [item.name for item in inputs], [item.name for item in outputs]
    if names != ([INPUT], [OUTPUT]):
        raise _failed("the package has other inputs or outputs", f"inputs and outputs: {names}")
    array = inputs[0].type.multiArrayType
    shapes = [tuple(item.shape) for item in array.enumeratedShapes.shapes] or [tuple(array.shape)]
    wanted = [(1, length) for length in sorted(settings.lengths)]
    kinds = array.ArrayDataType.Name(array.dataType), array.ArrayDataType.Name(outputs[0].type.multiArrayType.dataType)
    if sorted(shapes) != wanted or kinds != ("INT32", settings.precision.upper()):
        raise _failed("the package has another interface", f"shapes {sorted(shapes)}", f"types {kinds}")


def _operations(spec: Any) -> Iterator[Any]:
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations


def _stored_values(operation: Any) -> Sequence[Any]:
    values = list(operation.attributes.values())
    for argument in operation.inputs.values():
        values += [binding.value for binding in argument.arguments if binding.HasField("value")]
    return [value for value in values if value.HasField("blobFileValue")]


def _failed(what: str, *facts: str) -> StageFailed:
    return StageFailed("E-COREML-SELFCHECK", what, facts=facts)
