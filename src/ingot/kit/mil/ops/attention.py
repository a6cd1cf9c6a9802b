"""Products of matrices, and attention.

Products of fp16 numbers are summed in fp32 by BLAS and rounded once; those of fp32 numbers in fp64 (``Call.wide``), so
that a reference adds no error of its own. With ``Call.narrow`` each product is rounded to fp16 and added to
the sum so far, from the first to the last, which is rounded to fp16 too: the worst order that hardware may take.
"""

from __future__ import annotations

import math

import numpy as np

from ingot.kit.mil.ops.reducing import softmax
from ingot.kit.mil.ops.table import Call, Flag, bounded, computes
from ingot.kit.mil.rounding import round16
from ingot.kit.mil.types import Array


def product(call: Call, x: Array, y: Array) -> Array:
    """``x @ y`` in the accumulation of the call."""
    if x.ndim == 1 or y.ndim == 1:  # numpy's own rules, which are MIL's
        left, right = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
        found = product(call, left, right)
        found = found.squeeze(-2) if x.ndim == 1 else found
        return found.squeeze(-1) if y.ndim == 1 else found
    if x.shape[-1] != y.shape[-2]:
        raise ValueError(f"matrices of {x.shape} and {y.shape} have no product")
    shape = bounded(*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    if call.wide:
        return (x.astype(np.float64) @ y.astype(np.float64)).astype(np.float32)
    if not call.narrow:
        if y.ndim == 2:  # one product instead of one for each of the leading sizes
            return (x.reshape(-1, x.shape[-1]) @ y).reshape(shape)
        return x @ y
    found = np.zeros(shape, np.float32)
    for index in range(x.shape[-1]):
        found = round16(found + round16(x[..., :, index, None] * y[..., None, index, :]))
    return found


@computes("matmul", called=True)
def matmul(call: Call, x: Array, y: Array, *, transpose_x: Flag = False, transpose_y: Flag = False) -> Array:
    """The product of the last two axes."""
    return product(call, x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)


@computes("linear", called=True)
def linear(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weightᵀ + bias``."""
    found = product(call, x, weight.T)
    if bias is not None:
        found += bias
    return found


@computes("scaled_dot_product_attention", called=True)
def attention(call: Call, query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    """``softmax(query @ keyᵀ / sqrt(size) + mask) @ value``; a mask of truths hides where it is false.

    One operation, so its inner results are rounded nowhere unless sums are taken in fp16.
    """
    scores = product(call, query, key.swapaxes(-1, -2)) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = scores + (
            np.where(attn_mask, np.float32(0), np.float32(-np.inf)) if attn_mask.dtype == bool else attn_mask
        )
    return product(call, softmax(call, scores), value)
