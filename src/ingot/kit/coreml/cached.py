"""The module with a cache that coremltools traces: ids and their position in, logits out, keys and values in a state.

The state is as long as the context, whatever was read: a query sees the columns up to its own position, by an additive
mask that is made of integers, which no rounding touches. What lies beyond is seen by nobody until it is overwritten.
"""

from __future__ import annotations

import torch
from torch import nn

from ingot.kit.coreml.settings import KEYS, VALUES
from ingot.kit.decoder.layers import HIDDEN, Decoder, Place, rope_tables


class Cached(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """A decoder whose tokens stand at ``position`` and after; with ``tokens`` each call has so many of them."""

    def __init__(self, decoder: Decoder, context: int, tokens: int) -> None:
        """``tokens`` 0: as many as a call brings. coremltools cannot slice a state by the size of a fixed shape."""
        super().__init__()
        self.decoder, self.tokens = decoder, tokens
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.columns: torch.Tensor
        self.hidden: torch.Tensor
        shape = decoder.shape
        cos, sin = rope_tables(shape.rope, shape.head_dim, context)
        values = {
            "cos": cos,
            "sin": sin,
            "columns": torch.arange(context, dtype=torch.int32, device="cpu"),
            "hidden": torch.tensor([HIDDEN], device="cpu"),
        }
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)
        for name in (KEYS, VALUES):
            # states are in fp16; there are no others
            sizes = (shape.layers, shape.kv_heads, context, shape.head_dim)
            self.register_buffer(name, torch.zeros(sizes, dtype=torch.float16, device="cpu"))

    def forward(self, input_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """int32 ids (1, n) and how many tokens precede them (1) → logits (1, n, vocabulary)."""
        tokens = self.tokens or input_ids.shape[1]
        rows = self.columns[:tokens] + position
        cos, sin = (nn.functional.embedding(rows, table) for table in (self.cos, self.sin))
        unseen = self.columns.unsqueeze(0) > rows.unsqueeze(1)
        first = position[0]
        cache = _States(getattr(self, KEYS), getattr(self, VALUES), first, first + tokens)
        return self.decoder(input_ids, Place(cos, sin, unseen.type_as(cos) * self.hidden, cache))


class _States:
    """See ``decoder.layers.Cache``: a layer's part of the states, written from ``begin`` to ``end``."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> None:
        self._keys, self._values, self._begin, self._end = keys, values, begin, end

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write into the states, read them back whole, in the type of the keys: the converter reads states as fp32."""
        self._keys[layer : layer + 1, :, self._begin : self._end, :] = keys
        self._values[layer : layer + 1, :, self._begin : self._end, :] = values
        held = self._keys[layer : layer + 1], self._values[layer : layer + 1]
        return held[0].type_as(keys), held[1].type_as(values)
