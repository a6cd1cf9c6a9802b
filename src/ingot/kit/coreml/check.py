"""What a saved package says, compared with what was asked for, before anybody gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from coremltools.proto import MIL_pb2

from ingot.errors import StageFailed
from ingot.kit.coreml import program
from ingot.kit.coreml.blobs import blob_at
from ingot.kit.coreml.convert import Model
from ingot.kit.coreml.encode import parts
from ingot.kit.coreml.filling import constant_name
from ingot.kit.coreml.settings import INPUT, KEYS, OPSETS, OUTPUT, POSITION, VALUES, Lengths, Settings
from ingot.kit.coreml.storing import suffix
from ingot.kit.mil.blobs import Blob

_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT32": 32, "INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8,
    "BOOL": 8, "UINT6": 6, "INT4": 4, "UINT4": 4,
}  # fmt: skip
#: How coremltools writes an update of a state, for which it has no operation of that name.
_WRITTEN = {"write_state": "iOS18"}


@dataclass(frozen=True)
class Facts:
    """What a saved package says: operations other than constants (with how many there are of each), stored bytes by
    type, and what of these are the matrices."""

    kinds: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    matrix_bytes: Mapping[str, int]


def check(package: Path, model: Model) -> Facts:
    """Read a package back: interface, operations, how each matrix is stored, no reference outside of it.

    StageFailed: E-COREML-OPSET for an operation that the target's systems do not have, else E-COREML-SELFCHECK.
    """
    spec = program.load(package)
    functions = program.functions(spec)
    if {function.name for function in functions} != set(model.settings.functions):
        raise failed("the package has other functions", f"functions: {[each.name for each in functions]}")
    for function in functions:
        _check_interface(function, model)
        check_operations(function, model.settings)
    with (package / program.WEIGHTS).open("rb") as file:
        stored = _stored(spec, file)
        matrices = _check_matrices(spec, model)
    kinds = Counter(operation.type for operation in program.operations(spec))
    real = {kind: n for kind, n in sorted(kinds.items()) if kind != "const" and not kind.startswith("constexpr_")}
    return Facts(real, stored, matrices)


def _check_interface(function: program.Function, model: Model) -> None:
    settings, described = model.settings, function.description
    taken = [INPUT, POSITION] if settings.context else [INPUT]
    states = [KEYS, VALUES] if settings.context else []
    names = [[item.name for item in items] for items in (described.input, described.output, described.state)]
    if names != [taken, [OUTPUT], states]:
        raise failed(f"{function.name} has other inputs, outputs or states", f"inputs, outputs, states: {names}")
    ids, logits = described.input[0].type.multiArrayType, described.output[0].type.multiArrayType
    kinds = ids.ArrayDataType.Name(ids.dataType), ids.ArrayDataType.Name(logits.dataType)
    found, wanted = _lengths(ids), settings.functions[function.name]
    if found != wanted or kinds != ("INT32", settings.precision.upper()):
        raise failed(f"{function.name} has another interface", f"lengths {found}, asked for {wanted}", f"types {kinds}")
    sizes = [model.shape.layers, model.shape.kv_heads, settings.context, model.shape.head_dim]
    for state in described.state:
        array = state.type.stateType.arrayType
        if list(array.shape) != sizes or array.ArrayDataType.Name(array.dataType) != "FLOAT16":
            raise failed(f"the state {state.name} is another", f"shape {list(array.shape)}, asked for {sizes}")


def _lengths(array: Any) -> Lengths | None:
    """The lengths of the one row of ids that an input takes; None for an input of another form."""
    if array.enumeratedShapes.shapes:
        shapes = [tuple(item.shape) for item in array.enumeratedShapes.shapes]
    elif array.shapeRange.sizeRanges:
        rows, columns = array.shapeRange.sizeRanges
        one = (rows.lowerBound, rows.upperBound) == (1, 1)
        return Lengths((), columns.lowerBound, columns.upperBound) if one else None
    else:
        shapes = [tuple(array.shape)]
    one = all(len(shape) == 2 and shape[0] == 1 for shape in shapes)
    return Lengths.of(*(shape[1] for shape in shapes)) if one else None


def check_operations(function: program.Function, settings: Settings) -> None:
    """StageFailed (E-COREML-OPSET) for a function of another set of operations, or one outside of the target's."""
    wanted = OPSETS[settings.target]
    if function.opset != wanted:
        raise StageFailed(
            "E-COREML-OPSET",
            f"{function.name} is made for another system than {settings.target}",
            facts=[f"its operations are of {function.opset}, {settings.target} has {wanted}"],
        )
    target = getattr(ct.target, settings.target)
    outside = {
        operation.type
        for operation in function.operations
        if target not in SSAOpRegistry.core_ops.get(operation.type, {})
        and _WRITTEN.get(operation.type) != settings.target
    }
    if outside:
        raise StageFailed(
            "E-COREML-OPSET",
            f"{function.name} holds operations that {settings.target} does not have",
            facts=[f"operations: {', '.join(sorted(outside))}"],
            hint="raise minimum_deployment_target",
        )


def _stored(spec: Any, file: BinaryIO) -> dict[str, int]:
    """Bytes of all stored values by type, each counted once however many functions name it."""
    seen: dict[int, tuple[str, int]] = {}
    for operation in program.operations(spec):
        for value in program.stored(operation).values():
            if value.blobFileValue.fileName != program.BLOB:
                raise failed(f"a weight lies outside of the package: {value.blobFileValue.fileName}")
            kind, sizes = _type(value)
            blob = blob_at(file, value.blobFileValue.offset)
            if blob.size != -(-prod(sizes) * _BITS[kind] // 8):
                raise failed(_unlike(operation, blob))
            seen[blob.record] = kind.lower(), blob.size
    stored: Counter[str] = Counter()
    for name, size in seen.values():
        stored[name] += size
    return dict(sorted(stored.items()))


def _unlike(operation: Any, blob: Blob) -> str:
    return f"{operation.outputs[0].name} has {blob.size} bytes in the file of weights, unlike its type"


def _type(value: Any) -> tuple[str, tuple[int, ...]]:
    tensor = value.type.tensorType
    return MIL_pb2.DataType.Name(tensor.dataType), tuple(size.constant.size for size in tensor.dimensions)


def _check_matrices(spec: Any, model: Model) -> dict[str, int]:
    """That every matrix is stored as asked for, once, and that layers have no others; the bytes of each type."""
    settings = model.settings
    wanted = {constant_name(name) + suffix(settings): name for name in model.checkpoint.matrices()}
    places: dict[str, dict[int, tuple[str, int]]] = {}
    for operation in program.operations(spec):
        if (name := wanted.get(operation.outputs[0].name if operation.outputs else "")) is not None:
            found = {part: _type(value) for part, value in program.stored(operation).items()}
            if found != (asked := dict(_asked(name, model))):
                raise failed(f"{name} is not stored as {settings.weights}", f"found {found}", f"asked for {asked}")
            own = places.setdefault(name, {})
            for value in program.stored(operation).values():
                kind, sizes = _type(value)
                own[value.blobFileValue.offset] = kind.lower(), -(-prod(sizes) * _BITS[kind] // 8)
        elif operation.type == "linear" and operation.inputs["weight"].arguments[0].name not in wanted:
            raise failed(f"the weights of {operation.outputs[0].name} are not stored as {settings.weights}")
    if missing := set(wanted.values()) - set(places):
        raise failed(f"{min(missing)} is not stored as {settings.weights}", f"{len(missing)} matrices are not")
    if twice := [name for name, own in places.items() if len(own) > len(dict(_asked(name, model)))]:
        raise failed(f"{twice[0]} is stored more than once", f"{len(twice)} matrices are")
    # matrices may share a part: zero points are all alike
    stored: Counter[str] = Counter()
    for name, size in {place: part for own in places.values() for place, part in own.items()}.values():
        stored[name] += size
    return dict(sorted(stored.items()))


def _asked(name: str, model: Model) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    rows, columns = model.checkpoint.shapes[name]
    asked = parts((rows, columns), model.settings) or {"val": ((rows, columns), np.dtype(model.settings.precision))}
    for part, (sizes, kind) in asked.items():
        yield part, (_proto_name(kind), sizes)


def _proto_name(kind: np.dtype[Any]) -> str:
    name = types.builtin_to_string(types.numpy_type_to_builtin_type(kind)).upper()
    return str(name).replace("FP", "FLOAT")


def failed(what: str, *facts: str) -> StageFailed:
    """A package that is not what was asked for."""
    return StageFailed("E-COREML-SELFCHECK", what, facts=facts)
