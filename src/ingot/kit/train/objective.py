"""What training makes small. One loop trains everything; what differs is a value that gives losses.

Laws. A batch is a list of items. Its loss is the sum of ``losses`` over all its items divided by the sum of their
``scored``, so it does not depend on how the batch is split into forward passes. ``losses`` draws no random number
of its own and keeps no state, so that a run that goes on from a checkpoint sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch


class Item(Protocol):
    """One example: a document, or a pair of answers."""

    @property
    def id(self) -> str:
        """Of the row that it was made of: orders and permutes the items."""

    @property
    def size(self) -> int:
        """Tokens that a forward pass reads for it."""

    @property
    def scored(self) -> int:
        """How many losses it has: tokens that are learned, or 1 for a pair."""


ItemT_contra = TypeVar("ItemT_contra", bound=Item, contravariant=True)


class Objective(Protocol[ItemT_contra]):
    """Gives the losses of some items."""

    @property
    def unit(self) -> str:
        """Of a loss: ``nats/token``, ``nats/pair``."""

    def losses(self, model: Any, pack: Sequence[ItemT_contra]) -> torch.Tensor:
        """One fp32 loss for each scored part of each item, in their order, with the graph to the model's weights.

        Where gradients are off (evaluation) it gives the same numbers.
        """
