"""Operations that reduce along axes, softmax and norms.

Sums are taken in fp32 by numpy (pairwise along the last axis) and rounded once. With ``Call.narrow`` they run from the
first element to the last, and each partial sum is rounded to fp16; what is squared or exponentiated is rounded first.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ingot.kit.mil.ops.table import Call, Flag, computes, moves, sizes
from ingot.kit.mil.rounding import round16
from ingot.kit.mil.types import Array


def total(call: Call, x: Array, axes: tuple[int, ...], *, keep: bool) -> Array:
    """The sum over axes, in the accumulation of the call."""
    if not call.narrow:
        return np.asarray(np.sum(x, axis=axes, keepdims=keep))
    axes = tuple(axis % x.ndim for axis in axes)
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    kept = [x.shape[axis] for axis in rest]
    rows = x.transpose(*axes, *rest).reshape(-1, *kept)
    found = np.zeros(kept, np.float32)
    for row in rows:
        found = round16(np.asarray(found + row))
    return found.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)]) if keep else found


def _axes(x: Array, axes: Array | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else sizes(axes)


def _fresh(call: Call, x: Array) -> Array:
    return round16(x) if call.narrow else x


@computes("reduce_sum", called=True, integers=True)
def reduce_sum(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The sum."""
    return total(call, x, _axes(x, axes), keep=bool(keep_dims))


@computes("reduce_mean", called=True)
def reduce_mean(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The sum over the count."""
    over = _axes(x, axes)
    count = np.float32(max(1, prod(x.shape[axis] for axis in over)))
    return np.asarray(total(call, x, over, keep=bool(keep_dims)) / count)


@computes("reduce_sum_square", called=True, integers=True)
def reduce_sum_square(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The sum of squares."""
    return total(call, _fresh(call, x * x), _axes(x, axes), keep=bool(keep_dims))


@computes("reduce_l2_norm", called=True)
def reduce_l2_norm(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The root of the sum of squares."""
    return np.asarray(np.sqrt(reduce_sum_square(call, x, axes=axes, keep_dims=keep_dims)))


@computes("reduce_l1_norm", called=True, integers=True)
def reduce_l1_norm(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The sum of magnitudes."""
    return total(call, np.abs(x), _axes(x, axes), keep=bool(keep_dims))


@computes("reduce_log_sum_exp", called=True)
def reduce_log_sum_exp(call: Call, x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
    """The logarithm of the sum of exponentials, relative to the largest."""
    over = _axes(x, axes)
    peak = x.max(axis=over, keepdims=True)
    found: Array = np.log(total(call, _fresh(call, np.exp(x - peak)), over, keep=True)) + peak
    return found if bool(keep_dims) else found.squeeze(over)


def _picks(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, *, axes: Array | None = None, keep_dims: Flag = False) -> Array:
        return np.asarray(function(x, axis=_axes(x, axes), keepdims=bool(keep_dims)))

    return reduce


moves("reduce_max")(_picks(np.max))
moves("reduce_min")(_picks(np.min))


@moves("reduce_argmax")
def reduce_argmax(x: Array, *, axis: int | Array = -1, keep_dims: Flag = False) -> Array:
    """The first position of the largest."""
    return np.asarray(np.argmax(x, axis=int(axis), keepdims=bool(keep_dims)))


@moves("reduce_argmin")
def reduce_argmin(x: Array, *, axis: int | Array = -1, keep_dims: Flag = False) -> Array:
    """The first position of the smallest."""
    return np.asarray(np.argmin(x, axis=int(axis), keepdims=bool(keep_dims)))


@computes("softmax", called=True)
def softmax(call: Call, x: Array, axis: int | Array = -1) -> Array:
    """``exp(x) / sum(exp(x))``, relative to the largest."""
    over = int(axis)
    found: Array = x - x.max(axis=over, keepdims=True)
    np.exp(found, out=found)
    found = _fresh(call, found)
    found /= total(call, found, (over,), keep=True)
    return found


@computes("layer_norm", called=True)
def layer_norm(  # noqa: PLR0913  # MIL's own parameters
    call: Call,
    x: Array,
    *,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float | Array = 1e-5,
) -> Array:
    """``(x - mean) / sqrt(variance + epsilon) · gamma + beta`` over axes."""
    over = _axes(x, axes)
    away = x - reduce_mean(call, x, axes=np.array(over), keep_dims=True)
    spread = reduce_mean(call, away * away, axes=np.array(over), keep_dims=True)
    found: Array = away / np.sqrt(spread + np.float32(epsilon))
    shape = [size if axis in {a % x.ndim for a in over} else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        found = found * gamma.reshape(shape)
    return found if beta is None else found + beta.reshape(shape)
