"""Which weights to drop, and proof of what was dropped.

Two shapes of a mask. Unstructured: a share of each *group* of weights (the whole tensor, or each output row).
N:M: of every M consecutive weights along the input dimension at most N stay, what sparse tensor cores run (Mishra
et al. 2021). The score says which go: the smallest; of equal scores the one that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Weights that are looked at at once, so that a mask costs little more than its own bytes.
_PIECE = 1 << 18


def lowest(weights: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The mask (True: drop) of the ``round(sparsity · n)`` smallest by size of all n weights, ties in order of index.

    Exact in one count over the weights, or two where they have more than 16 bits: the bits of a size, read as an
    integer, are in the order of the sizes.
    """
    count = round(sparsity * weights.numel())
    mask = torch.zeros(weights.numel(), dtype=torch.bool)
    if count:
        limit, below = _limit(weights, count)
        ties = count - below
        for at, sizes in _sizes(weights):
            found = mask[at : at + len(sizes)]
            torch.lt(sizes, limit, out=found)
            if ties:
                same = torch.nonzero(sizes == limit).flatten()[:ties]
                found[same] = True
                ties -= len(same)
    return mask.view_as(weights)


def _limit(weights: torch.Tensor, count: int) -> tuple[int, int]:
    """The ``count``-th smallest size as an integer, and how many are smaller."""
    wide = not _is_narrow(weights)
    upper, lower = torch.zeros(1 << 15, dtype=torch.int64), torch.zeros(1 << 16, dtype=torch.int64)
    for _, sizes in _sizes(weights):
        upper += torch.bincount(sizes >> 16 if wide else sizes, minlength=len(upper))
    high, below = _reach(upper, count)
    if not wide:
        return high, below
    for _, sizes in _sizes(weights):
        lower += torch.bincount(sizes[sizes >> 16 == high] & 0xFFFF, minlength=len(lower))
    low, more = _reach(lower, count - below)
    return high << 16 | low, below + more


def _reach(counts: torch.Tensor, count: int) -> tuple[int, int]:
    """The first place up to which there are ``count``, and how many there are before it."""
    sums = torch.cumsum(counts, 0)
    place = int(torch.searchsorted(sums, count))
    return place, int(sums[place] - counts[place])


def _is_narrow(weights: torch.Tensor) -> bool:
    return weights.dtype in (torch.float16, torch.bfloat16)


def _sizes(weights: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Pieces of the weights as integers without sign: float16 and bfloat16 of 15 bits, others as float32 of 31."""
    flat = weights.flatten()
    narrow = _is_narrow(weights)
    for at in range(0, flat.numel(), _PIECE):
        piece = flat[at : at + _PIECE]
        yield at, piece.view(torch.int16) & 0x7FFF if narrow else piece.float().abs().view(torch.int32)


def lowest_per_row(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """As ``lowest``, of each row by itself: rounded, so every row loses the same number."""
    count = round(sparsity * scores.shape[1])
    order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, value=True)


def n_of_m(scores: torch.Tensor, keep: int, block: int) -> torch.Tensor:
    """The mask that leaves the ``keep`` highest scores of every ``block`` along a row; columns must divide."""
    rows, columns = scores.shape
    blocks = scores.reshape(rows * columns // block, block)
    order = torch.sort(blocks, dim=1, stable=True).indices[:, : block - keep]
    return torch.zeros(blocks.shape, dtype=torch.bool).scatter_(1, order, value=True).view(rows, columns)


def crowded(weight: torch.Tensor, keep: int, block: int) -> int:
    """How many blocks of ``block`` weights along the rows hold more than ``keep`` that are not zero."""
    blocks = (weight != 0).reshape(-1, block)
    return int((blocks.sum(dim=1) > keep).sum())


#: Integers of each size in bytes: looked at as bits, weights are compared and masked without a branch each.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zeros(weight: torch.Tensor) -> int:
    """How many weights are exactly zero, of either sign."""
    if weight.is_complex():
        return int((weight == 0).sum())
    bits = weight.contiguous().flatten().view(_BITS[weight.element_size()])
    if weight.is_floating_point():
        bits = bits & (0x7F if weight.element_size() == 1 else torch.iinfo(bits.dtype).max)
    return int(bits.numel()) - int(torch.count_nonzero(bits))


def dropped(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The weights with zero where the mask is True."""
    bits = weight.view(_BITS[weight.element_size()])
    return (bits & (mask.to(bits.dtype) - 1)).view(weight.dtype)
