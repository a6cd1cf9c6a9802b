"""Matrices as a program stores them: plain, int8 with one scale a row, int4 by block, indices into tables.

``parts`` says what one matrix is stored as, ``encode`` computes it. Both know the two forms: operations up to iOS 17
(one scale or table a row or tensor, indices packed into bytes), and those of iOS 18. The numbers are those of
coremltools' own quantization and palettization passes, computed piece by piece so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools._deps import _kmeans1d
from coremltools.converters.mil.mil import types
from coremltools.optimize import _utils as bits
from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

from ingot.kit.coreml.settings import Settings

Array = npt.NDArray[Any]

#: Weights that are worked on at once.
_PIECE = 1 << 20


def parts(shape: tuple[int, int], settings: Settings) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """By parameter of the operation that decodes a matrix: shape and type of what it is given.

    Empty for plain weights, which no operation decodes.
    """
    rows, columns = shape
    number = np.dtype(settings.precision)
    old = settings.target == "iOS17"
    if settings.weights == "int8":
        if old:
            return {"quantized_data": (shape, _I8), "zero_point": ((rows,), _I8), "scale": ((rows,), number)}
        return {"data": (shape, _I8), "scale": ((rows, 1), number)}
    if settings.weights == "int4":
        return {"data": (shape, _small("int4")), "scale": ((rows, columns // settings.block), number)}
    if width := settings.table_bits:
        if old:
            packed = -(-rows * columns * width // 8)
            return {"indices": ((packed,), np.dtype(np.uint8)), "lut": ((1 << width,), number)}
        groups = rows // (settings.block or rows)
        return {"indices": (shape, _small(f"uint{width}")), "lut": ((groups, 1, 1 << width, 1), number)}
    return {}


_I8 = np.dtype(np.int8)


def _small(name: str) -> np.dtype[Any]:
    """numpy's type for an integer of less than a byte: coremltools marks one of a byte."""
    kind: np.dtype[Any] = np.dtype(types.nptype_from_builtin(types.string_to_builtin(name)))
    return kind


def encode(weight: Array, settings: Settings) -> dict[str, Array]:
    """The ``parts`` of a matrix, already rounded to the precision that computes; plain ones under ``val``."""
    if settings.plain:
        return {"val": weight}
    if settings.table_bits:
        return _palettized(weight, settings)
    return _quantized(weight, settings)


def _quantized(weight: Array, settings: Settings) -> dict[str, Array]:
    """Symmetric: the largest magnitude of a row (int8) or block (int4) is the largest integer."""
    width, blocks = (8, [1, 0]) if settings.weights == "int8" else (4, [1, settings.block])
    data = np.empty(weight.shape, np.int8)
    scales = []
    step = max(1, _PIECE // weight.shape[1])
    for start in range(0, len(weight), step):
        found = linear_quantize_weights.blockwise_compress(
            weight[start : start + step], width, "LINEAR_SYMMETRIC", signed=True, block_sizes=blocks
        )
        data[start : start + step] = found.data
        scales.append(found.scale)
    scale = np.concatenate(scales)
    if width == 4:
        return {"data": data, "scale": scale}
    if settings.target == "iOS17":
        return {"quantized_data": data, "zero_point": np.zeros(len(data), np.int8), "scale": scale[:, 0]}
    return {"data": data, "scale": scale}


def _palettized(weight: Array, settings: Settings) -> dict[str, Array]:
    """Each group of rows by the table that is nearest to its weights: k-means in one dimension, which is exact.

    Nothing is drawn at random: equal weights give equal tables.
    """
    width = settings.table_bits
    step = settings.block or len(weight)
    indices = np.empty(weight.shape, np.uint8)
    tables = []
    for start in range(0, len(weight), step):
        group = weight[start : start + step]
        table, places = _nearest_table(group, 1 << width)
        tables.append(table.astype(weight.dtype))
        for piece in _pieces(group):
            indices[start : start + step].reshape(-1)[piece] = places[_patterns(group.reshape(-1)[piece])]
    if settings.target == "iOS17":
        return {"indices": packed(indices, width), "lut": tables[0]}
    return {"indices": indices, "lut": np.stack(tables)[:, np.newaxis, :, np.newaxis]}


def _nearest_table(weight: Array, size: int) -> tuple[Array, Array]:
    """A table of ``size`` numbers, and for each of the 65,536 patterns of a float16 the number that stands for it."""
    flat = weight.reshape(-1)
    counts = np.zeros(1 << 16, np.int64)
    for piece in _pieces(weight):
        counts += np.bincount(_patterns(flat[piece]), minlength=1 << 16)
    found = np.flatnonzero(counts)
    values = found.astype(np.uint16).view(np.float16).astype(np.float64)
    clusters = _kmeans1d.cluster(values, min(size, len(values)), weights=counts[found].astype(np.float64))
    table = np.zeros(size, np.float64)
    table[: len(clusters.centroids)] = clusters.centroids
    places = np.zeros(1 << 16, np.uint8)
    places[found] = clusters.clusters
    return table, places


def _patterns(weight: Array) -> Array:
    return weight.astype(np.float16).view(np.uint16)


def _pieces(weight: Array) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, weight.size, _PIECE))


def packed(elements: Array, width: int) -> Array:
    """Integers of ``width`` bits as bytes, the first in the lowest bits, as coremltools packs them."""
    flat = elements.reshape(-1)
    # whole pieces fill whole bytes: a piece is a multiple of eight
    return np.concatenate([bits.pack_elements_into_bits(flat[piece], width) for piece in _pieces(flat)])


def stored_bytes(part: Array, kind: np.dtype[Any]) -> bytes:
    """A part as it lies in the file of weights: what has less than a byte packed, all else little-endian."""
    small = types.numpy_type_to_builtin_type(kind)
    width = int(small.get_bitwidth())
    return (packed(part, width) if width < 8 else np.ascontiguousarray(part)).tobytes()
