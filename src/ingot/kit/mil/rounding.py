"""Rounding to fp16 while staying in fp32 arrays, where BLAS and vector units are fast."""

from __future__ import annotations

import numpy as np

from ingot.kit.mil.types import Array

#: Elements at a time, so that the steps find them in the cache.
_STEP = 1 << 15
_SMALL = np.float32(2.0**-14)
_LARGE = np.float32(65504.0)
#: Added to a number below ``_SMALL`` it leaves multiples of 2⁻²⁴, fp16's smallest, to the even one of two.
_SHIFT = np.float32(0.75)


def round16(x: Array) -> Array:
    """Each number as the nearest that fp16 has, ties to even, beyond 65,504 infinite: as ``astype`` to fp16 and back.

    ``x`` is fp32 and changed where it can be; what is given back is the result.
    """
    if not (x.flags.c_contiguous and x.flags.writeable):
        x = np.array(x, order="C")
    flat = x.reshape(-1)
    for start in range(0, flat.size, _STEP):
        _round(flat[start : start + _STEP])
    return x


def _round(x: Array) -> None:
    magnitude = np.abs(x)
    if not magnitude.max() <= _LARGE:  # overflow, infinite or not a number
        with np.errstate(over="ignore"):
            x[...] = x.astype(np.float16)
        return
    bits = x.view(np.uint32)
    small = magnitude < _SMALL
    subnormal = None
    if small.any():
        subnormal = magnitude
        subnormal += _SHIFT
        subnormal -= _SHIFT
        subnormal.view(np.uint32)[...] |= bits & np.uint32(0x80000000)
    carry = bits >> np.uint32(13)
    carry &= np.uint32(1)
    carry += np.uint32(0xFFF)
    bits += carry
    bits &= np.uint32(0xFFFFE000)
    if subnormal is not None:
        np.copyto(x, subnormal, where=small)
