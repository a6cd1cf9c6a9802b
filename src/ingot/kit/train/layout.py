"""How the items of a batch are laid out in forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ingot.kit.train.objective import Item

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Layout:
    """``packed``: end to end in one row; ``padded``: a row each, filled up to the longest; ``single``: one a pass.

    ``tokens`` bounds a pass, padding included; an item that is longer by itself goes alone.
    """

    kind: Literal["packed", "padded", "single"]
    tokens: int

    def passes(self, items: Sequence[ItemT]) -> Iterator[list[ItemT]]:
        """Consecutive items that one forward pass takes."""
        taken: list[ItemT] = []
        for item in items:
            if taken and self.cost([*taken, item]) > self.tokens:
                yield taken
                taken = []
            taken.append(item)
            if self.kind == "single":
                yield taken
                taken = []
        if taken:
            yield taken

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that a pass over these reads, padding included."""
        if self.kind == "padded":
            return len(items) * max(item.size for item in items)
        return sum(item.size for item in items)
