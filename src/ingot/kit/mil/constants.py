"""Constants, plain and compressed, as the tensors that they stand for.

Compressed weights follow the definitions in coremltools' ``iOS16/constexpr_ops.py`` and ``iOS18/compression.py``. What
is dequantized to fp16 is rounded to fp16, once, of the exact product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2, prod
from typing import Any

import numpy as np

from ingot.kit.mil.blobs import decode, unpack
from ingot.kit.mil.package import Package
from ingot.kit.mil.program import Literal, Operation, refused
from ingot.kit.mil.rounding import round16
from ingot.kit.mil.types import MOST_ELEMENTS, NAMED, Array, TensorType

_FIELDS = {
    "floats": {"fp32", "fp16"},
    "ints": {"int8", "int16", "int32", "uint8", "uint16", "uint32"},
    "bools": {"bool"},
    "longInts": {"int64", "uint64"},
    "doubles": {"fp64"},
}


def literal(value: Literal, package: Package, where: str) -> Any:
    """A constant: a string, or an array in the type that it is computed in. RefusedInput: E-MIL-PROGRAM, E-MIL-BLOB."""
    if value.file is not None:
        return package.blobs(value.file).read(value.value.blobFileValue.offset, value.type)
    tensor = value.value.immediateValue.tensor
    which = tensor.WhichOneof("value")
    if value.type.dtype.name == "string":
        if which != "strings" or value.type.shape or len(tensor.strings.values) != 1:
            raise refused(f"a constant of {where} is no single string")
        return str(tensor.strings.values[0])
    if which == "bytes":
        data = np.frombuffer(tensor.bytes.values, np.uint8)
        if data.size != value.type.dtype.bytes_of(value.type.elements):
            raise refused(f"a constant of {where} has {data.size} bytes, which is not what {value.type} has")
        return decode(data, value.type)
    if value.type.dtype.name not in _FIELDS.get(which or "", ()):
        raise refused(f"a constant of {where} is of type {value.type} and stored as {which or 'nothing'}")
    return _numbers(getattr(tensor, which).values, value.type, where)


def _numbers(values: Any, kind: TensorType, where: str) -> Array:
    # one number may stand for a whole tensor of equal ones
    if len(values) not in {1, kind.elements}:
        raise refused(f"a constant of {where} has {len(values)} elements, which is not what {kind} has")
    shape = tuple(size or 0 for size in kind.shape)
    try:
        found = np.array(values, dtype=kind.dtype.outside).astype(kind.dtype.inside)
    except (OverflowError, ValueError) as error:
        raise refused(f"a constant of {where} does not fit {kind}: {error}") from error
    return found.reshape(shape) if len(values) == kind.elements else np.full(shape, found[0])


def _linear(data: Array, scale: Array, offset: Array | None) -> Array:
    """``scale · (data - offset)`` in fp32: exact up to one rounding where the scale is fp16 and the data has 8 bits."""
    found = data.astype(np.float32)
    if offset is not None:
        found -= offset.astype(np.float32)
    found *= scale
    return found


def affine(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    """iOS16: one scale and zero point for all, or one a slice along ``axis``."""
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1

    def wide(value: Array) -> Array:
        return value.reshape(shape) if value.ndim else value

    return _linear(quantized_data, wide(scale), wide(zero_point))


def blockwise(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """iOS18: a scale (and offset) for each block; how large blocks are follows from the shapes."""
    blocks = [size // of for size, of in zip(data.shape, scale.shape, strict=True)]
    if any(size % of for size, of in zip(data.shape, scale.shape, strict=True)):
        raise ValueError(f"blocks do not divide: data {data.shape}, scales {scale.shape}")
    split = [part for size, of in zip(scale.shape, blocks, strict=True) for part in (size, of)]
    spread = [part for size in scale.shape for part in (size, 1)]
    shift = None if offset is None else offset.reshape(spread)
    return _linear(data.reshape(split), scale.reshape(spread), shift).reshape(data.shape)


def palette16(indices: Array, lut: Array, shape: Array) -> Array:
    """iOS16: packed indices into one table."""
    bits = int(log2(lut.size))
    sizes = _sizes(shape)
    kind = NAMED.get(f"uint{bits}")
    if lut.size != 1 << bits or kind is None or indices.size != kind.bytes_of(prod(sizes)):
        raise ValueError(f"{indices.size} bytes of indices into {lut.size} values do not make the shape {sizes}")
    flat = unpack(indices, kind, prod(sizes)) if kind.packed else indices
    return lut[flat].reshape(sizes)


def palette18(indices: Array, lut: Array, vector_axis: Array | None = None) -> Array:
    """iOS18: a table for each group of indices, whose entries are numbers or vectors along ``vector_axis``."""
    groups, (entries, vector) = lut.shape[:-2], lut.shape[-2:]
    if len(groups) != indices.ndim or any(size % of for size, of in zip(indices.shape, groups, strict=True)):
        raise ValueError(f"groups do not divide: indices {indices.shape}, tables {lut.shape}")
    if indices.size and int(indices.max()) >= entries:
        raise ValueError(f"an index of {int(indices.max())} into {entries} values")
    tables = lut.reshape(-1, vector)
    first: Array = np.zeros((1,) * indices.ndim, np.int64)
    for axis, (size, of) in enumerate(zip(indices.shape, groups, strict=True)):
        spread = [1] * indices.ndim
        spread[axis] = size
        first = first * of + np.repeat(np.arange(of), size // of).reshape(spread)
    found: Array = tables[first * entries + indices]
    if vector == 1:
        return found[..., 0]
    if vector_axis is None:
        raise ValueError("tables of vectors without an axis for them")
    axis = int(vector_axis) % indices.ndim
    shape = list(indices.shape)
    shape[axis] *= vector
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def sparse16(nonzero_data: Array, mask: Array, shape: Array) -> Array:
    """iOS16: values of the elements whose bits are set."""
    sizes = _sizes(shape)
    bits = np.unpackbits(mask, bitorder="little")
    if mask.size != -(-prod(sizes) // 8) or bits[prod(sizes) :].any():
        raise ValueError(f"a mask of {mask.size} bytes does not make the shape {sizes}")
    return sparse18(nonzero_data, bits[: prod(sizes)].reshape(sizes))


def sparse18(nonzero_data: Array, mask: Array) -> Array:
    """iOS18: the same with a mask that has the shape."""
    chosen = mask != 0
    if np.count_nonzero(chosen) != nonzero_data.size:
        raise ValueError(f"a mask with {np.count_nonzero(chosen)} set for {nonzero_data.size} values")
    found = np.zeros(mask.shape, nonzero_data.dtype)
    found[chosen] = nonzero_data.reshape(-1)
    return found


def _sizes(shape: Array) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape.reshape(-1))
    if prod(sizes) > MOST_ELEMENTS:
        raise ValueError(f"the shape {sizes} has more elements than the {MOST_ELEMENTS} allowed")
    return sizes


def widened(source_val: Array, output_dtype: str) -> Array:
    """iOS16: fp16 as fp32, which is how it is held anyway."""
    del output_dtype
    return source_val


#: By kind and by a parameter that only one of two generations has.
_DECODERS: dict[tuple[str, str], Callable[..., Array]] = {
    ("constexpr_affine_dequantize", "quantized_data"): affine,
    ("constexpr_blockwise_shift_scale", "data"): blockwise,
    ("constexpr_lut_to_dense", "shape"): palette16,
    ("constexpr_lut_to_dense", "lut"): palette18,
    ("constexpr_sparse_to_dense", "shape"): sparse16,
    ("constexpr_sparse_to_dense", "mask"): sparse18,
    ("constexpr_cast", "source_val"): widened,
}


def decoder(operation: Operation) -> Callable[..., Array] | None:
    """What decodes a ``constexpr_…`` operation; None when it is not known."""
    for (kind, parameter), function in _DECODERS.items():
        if kind == operation.kind and parameter in operation.arguments:
            return function
    return None


def evaluate(operation: Operation, arguments: Mapping[str, Any]) -> Array:
    """The tensor that a constant operation stands for, from its decoded arguments. RefusedInput: E-MIL-PROGRAM."""
    (_, kind), *_ = operation.outputs
    function = (lambda val: val) if operation.kind == "const" else decoder(operation)
    assert function is not None, f"{operation.where} was not checked"
    try:
        found = function(**arguments)
    except (ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise refused(f"{operation.where} cannot be decoded: {error}") from error
    if isinstance(found, str):
        return found  # type: ignore[return-value]  # a name of a type, an argument of cast
    if not kind.fits(found.shape):
        raise refused(f"{operation.where} gives the shape {found.shape}, and {kind} is declared")
    if found.dtype == kind.dtype.inside and operation.kind != "const" and kind.dtype.name == "fp16":
        return round16(found)
    return found.astype(kind.dtype.inside, copy=False)
