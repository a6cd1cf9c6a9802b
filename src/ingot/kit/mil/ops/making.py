"""Operations that make values of shapes and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.kit.mil.ops.table import Call, Flag, bounded, computes, moves, sizes
from ingot.kit.mil.types import Array


@moves("shape")
def shape(x: Array) -> Array:
    """The sizes of a value."""
    return np.array(x.shape, np.int32)


@moves("fill", called=True)
def fill(call: Call, shape: Array, value: Any = 0.0) -> Array:
    """A value of one number."""
    return np.full(bounded(*sizes(shape)), value, dtype=call.types[0].dtype.inside)


@moves("fill_like", called=True)
def fill_like(call: Call, ref_tensor: Array, value: Any = 0.0) -> Array:
    """A value of one number with the shape of another."""
    return np.full(ref_tensor.shape, value, dtype=call.types[0].dtype.inside)


@computes("range_1d", called=True, integers=True)
def range_1d(call: Call, start: Array, end: Array, step: Array) -> Array:
    """``start``, ``start + step``, … before ``end``."""
    if float(step) == 0:
        raise ValueError("a range in steps of 0")
    bounded(max(0, int((float(end) - float(start)) / float(step)) + 1))
    found: Array = np.arange(start.item(), end.item(), step.item())
    return found.astype(call.types[0].dtype.inside)


@computes("cumsum", integers=True)
def cumsum(x: Array, *, axis: int | Array = 0, exclusive: Flag = False, reverse: Flag = False) -> Array:
    """Sums up to each element, without it where ``exclusive``, from the other end where ``reverse``."""
    where = int(axis)
    run = np.flip(x, where) if reverse else x
    found = np.cumsum(run, axis=where, dtype=x.dtype)
    found = found - run if exclusive else found
    return np.flip(found, where) if reverse else found
