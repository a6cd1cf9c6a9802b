"""Which weights to drop, and proof of what was dropped.

Two shapes of a mask. Unstructured: a share of each *group* of weights (the whole tensor, or each output row).
N:M: of every M consecutive weights along the input dimension at most N stay, what sparse tensor cores run (Mishra
et al. 2021). The score says which go: the smallest; of equal scores the one that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

#: Weights that are looked at at once, so that a mask costs little more than its own bytes.
_PIECE = 1 << 20


def lowest(weights: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The mask (True: drop) of the ``round(sparsity · n)`` smallest by size of all n weights, ties in order of index.

    Exact in two counts over the weights: the bits of a size, read as an integer, are in the order of the sizes.
    """
    count = round(sparsity * weights.numel())
    mask = torch.zeros(weights.numel(), dtype=torch.bool)
    if count:
        limit, below = _limit(weights, count)
        ties = count - below
        for at, sizes in _sizes(weights):
            found = sizes < limit
            same = np.flatnonzero(sizes == limit)[:ties]
            found[same] = True
            ties -= len(same)
            mask[at : at + len(found)] = torch.from_numpy(found)
    return mask.view_as(weights)


def _limit(weights: torch.Tensor, count: int) -> tuple[int, int]:
    """The ``count``-th smallest size as an integer, and how many are smaller."""
    upper, lower = np.zeros(1 << 15, np.int64), np.zeros(1 << 16, np.int64)
    for _, sizes in _sizes(weights):
        upper += np.bincount(sizes >> 16, minlength=len(upper))
    high, below = _reach(upper, count)
    for _, sizes in _sizes(weights):
        lower += np.bincount(sizes[sizes >> 16 == high] & 0xFFFF, minlength=len(lower))
    low, more = _reach(lower, count - below)
    return high << 16 | low, below + more


def _reach(counts: npt.NDArray[np.int64], count: int) -> tuple[int, int]:
    """The first place up to which there are ``count``, and how many there are before it."""
    sums = np.cumsum(counts)
    place = int(np.searchsorted(sums, count))
    return place, int(sums[place] - counts[place])


def _sizes(weights: torch.Tensor) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    flat = weights.flatten()
    for at in range(0, flat.numel(), _PIECE):
        yield at, flat[at : at + _PIECE].float().abs().view(torch.int32).numpy()


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


def zeros(weight: torch.Tensor) -> int:
    """How many weights are exactly zero."""
    return int(weight.numel()) - int(torch.count_nonzero(weight))
