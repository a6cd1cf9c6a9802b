"""The module that coremltools traces: int32 ids in, logits of every position out.

Everything that depends on the position is a table (cosines, sines, the additive causal mask), sliced to the length of
the input; nothing else in the graph depends on data.
"""

from __future__ import annotations

import torch
from torch import nn

from ingot.kit.decoder.build import places
from ingot.kit.decoder.layers import Decoder, Place


class Prefill(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """A decoder for inputs of up to ``length`` tokens that nothing precedes."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        """Tables are made for ``length`` positions."""
        super().__init__()
        self.decoder = decoder
        #: Whether inputs always fill the tables: coremltools cannot slice by the size of a fixed shape.
        self.whole = False
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.mask: torch.Tensor
        place = places(decoder.shape, length)
        for name in ("cos", "sin", "mask"):
            self.register_buffer(name, getattr(place, name), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int32 ids (1, n) → logits (1, n, vocabulary)."""
        cos, sin, mask = self.cos, self.sin, self.mask
        if not self.whole:
            length = input_ids.shape[1]
            cos, sin, mask = cos[:length], sin[:length], mask[:length, :length]
        return self.decoder(input_ids, Place(cos, sin, mask))
