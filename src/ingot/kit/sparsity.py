"""Which weights to drop, and proof of what was dropped.

Two shapes of a mask. Unstructured: a share of each *group* of weights (the whole tensor, or each output row).
N:M: of every M consecutive weights along the input dimension at most N stay, what sparse tensor cores run (Mishra
et al. 2021). The score says which go: the smallest; of equal scores the one that comes first.
"""

from __future__ import annotations

import torch


def lowest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The mask (True: drop) of the ``round(sparsity · n)`` smallest of all n scores, ties in order of index."""
    flat = scores.flatten()
    count = round(sparsity * flat.numel())
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    if count:
        # a threshold instead of a sort: linear in the number of weights
        limit = torch.kthvalue(flat, count).values
        mask = flat < limit
        ties = torch.nonzero(flat == limit).flatten()
        mask[ties[: count - int(mask.sum())]] = True
    return mask.view_as(scores)


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
