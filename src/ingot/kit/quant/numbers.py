"""Scales, zero points, rounded weights and packed words: the arithmetic of rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ingot.errors import RefusedInput
from ingot.kit.quant.scheme import Scheme

#: What the largest weight of a symmetric group is divided by. Eight bits use -127 … 127, so that a weight and its
#: negative are treated alike; four bits use -8 … 7, where 7.5 is the most that is half a step off.
_REACH = {8: 127.0, 4: 7.5}
_FP8_MOST = 448.0


@dataclass(frozen=True)
class Rounded:
    """Weights (rows × columns) as integers or 8-bit floats, their scales (rows × groups) and, if any, zero points."""

    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


def rounded(
    weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype, known: tuple[torch.Tensor, torch.Tensor | None] | None
) -> Rounded:
    """The nearest values of ``w / s``; scales and zero points are ``known``, or follow from the weights."""
    scale, zero = scales_of(weight, scheme, dtype) if known is None else known
    return Rounded(quantize(weight, scale, zero, scheme), scale, zero)


def scales_of(
    weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales (rows × groups) of ``dtype`` (unless given, the weights'), and zero points (int8) if asymmetric.

    A scale is the smallest of its dtype with which every weight is within half a step: rounding one down would clip
    the largest weight by more, so it is rounded up. A group of zeros has scale 1. RefusedInput (E-QUANTIZE-VALUE) for
    weights that are not finite, or too large for the scale.
    """
    groups = _grouped(weight.float(), scheme.group_size)
    if scheme.symmetric:
        spread = groups.abs().amax(dim=-1)
        reach = _FP8_MOST if scheme.floating else _REACH[scheme.bits]
    else:
        spread = groups.amax(dim=-1).clamp(min=0) - groups.amin(dim=-1).clamp(max=0)
        reach = float((1 << scheme.bits) - 1)
    if not bool(torch.isfinite(spread).all()):
        raise RefusedInput(
            "E-QUANTIZE-VALUE",
            "a weight is not a finite number",
            facts=[f"shape {tuple(weight.shape)}"],
            hint="leave out 'allow_nonfinite' to be told its name; such weights can be left to 'ignore'",
        )
    scale = _rounded_up(spread, reach, dtype or weight.dtype)
    return scale, None if scheme.symmetric else _zeros(groups, scale, scheme.bits)


def _rounded_up(spread: torch.Tensor, reach: float, dtype: torch.dtype) -> torch.Tensor:
    scale = (spread / reach).to(dtype)
    # products of an 8-bit integer (or a half) and the scale are exact in fp64, so the comparison is, too
    short = scale.double() * reach < spread.double()
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    if not bool(torch.isfinite(scale).all()):
        raise RefusedInput(
            "E-QUANTIZE-VALUE",
            f"a scale is too large for {dtype}",
            facts=[f"weights span {spread.max()}"],
            hint="convert the model to bfloat16 or float32 first ('kind: convert')",
        )
    return torch.where(spread == 0, torch.ones_like(scale), scale)


def _zeros(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    low = -(1 << (bits - 1))
    least = groups.amin(dim=-1).clamp(max=0)
    return (low - least / scale.float()).round().clamp(low, -low - 1).to(torch.int8)


def quantize(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """The nearest integers (int8) or 8-bit floats of ``w / s``, computed in fp32, ties to even."""
    parts = _grouped(weight.float(), scheme.group_size) / scale.float().unsqueeze(-1)
    if scheme.floating:
        return parts.clamp(-_FP8_MOST, _FP8_MOST).reshape(weight.shape).to(torch.float8_e4m3fn)
    if zero is not None:
        parts = parts.round() + zero.float().unsqueeze(-1)
    most = (1 << (scheme.bits - 1)) - 1
    return parts.round().clamp(-most - 1, most).to(torch.int8).reshape(weight.shape)


def _grouped(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    size = weight.shape[1] if group_size is None else group_size
    return weight.reshape(weight.shape[0], -1, size)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 values as the format's int32 words: offset by 2^(bits-1), little-endian, rows filled up with zeros."""
    rows, columns = values.shape
    each = 32 // bits
    filled = torch.zeros(rows, -(-columns // each) * each, dtype=torch.uint8)
    filled[:, :columns] = (values.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    if bits == 4:
        filled = filled[:, 0::2] | filled[:, 1::2] << 4
    return filled.contiguous().view(torch.int32)


def pack_zeros(zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Zero points (rows × groups) packed down the rows."""
    return pack(zero.T.contiguous(), bits).T.contiguous()


def most_off(weight: torch.Tensor, scale: torch.Tensor, scheme: Scheme, eps: float) -> torch.Tensor:
    """How far each weight may be from what it reads back as.

    Half a step for the integer (of E4M3 half a unit in the last of 4 binary places), and half a unit in the last place
    of the dtype for the product ``q·s``.
    """
    step = spread(scale, weight.shape[1])
    if scheme.floating:
        size = weight.float().abs()
        return (torch.maximum(size / 16, step / 1024) + (size + step) * eps) * 1.001
    largest = 127.0 if scheme.symmetric else float((1 << scheme.bits) - 1)
    return step * (0.5 + largest * eps / 2) * 1.001


def spread(scale: torch.Tensor, columns: int) -> torch.Tensor:
    """Scales (rows × groups) as fp32, one an element of a row."""
    return scale.float().repeat_interleave(columns // scale.shape[1], dim=1)
