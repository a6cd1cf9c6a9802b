"""What a Core ML package is asked to be: lengths, precision, stored weights, system, cache. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INPUT, POSITION, OUTPUT = "input_ids", "position", "logits"
KEYS, VALUES = "key_cache", "value_cache"
PREFILL, DECODE, MAIN = "prefill", "decode", "main"

Precision = Literal["float16", "float32"]
WeightType = Literal["float16", "float32", "int8", "int4", "palettized4", "palettized6", "palettized8"]
Target = Literal["iOS17", "iOS18"]

#: The name of the operations that a function of a target may hold, as programs state it.
OPSETS: dict[str, str] = {"iOS17": "CoreML7", "iOS18": "CoreML8"}


@dataclass(frozen=True)
class Lengths:
    """How many tokens a call takes: one of ``listed``, or anything from ``least`` to ``most`` where none is listed."""

    listed: tuple[int, ...] = ()
    least: int = 0
    most: int = 0

    @classmethod
    def of(cls, *listed: int) -> Lengths:
        """These lengths, in order."""
        return cls(tuple(sorted(listed)), min(listed), max(listed))

    @property
    def fixed(self) -> bool:
        """Whether there is one."""
        return self.least == self.most

    def takes(self, tokens: int) -> bool:
        """Whether a call may have so many tokens."""
        return tokens in self.listed if self.listed else self.least <= tokens <= self.most


@dataclass(frozen=True)
class Settings:
    """How to convert.

    ``block`` is how many weights of a row share a scale (int4), or how many rows share a table (palettized; 0: all).
    ``context`` is how many positions the cache has; 0 where there is none.
    """

    lengths: Lengths
    precision: Precision = "float16"
    weights: WeightType = "float16"
    target: Target = "iOS17"
    block: int = 0
    context: int = 0

    @property
    def plain(self) -> bool:
        """Whether matrices are stored as the numbers that compute."""
        return self.weights in {"float16", "float32"}

    @property
    def table_bits(self) -> int:
        """Bits of an index into a table of weights; 0 where there is no table."""
        return int(self.weights.removeprefix("palettized")) if self.weights.startswith("palettized") else 0

    @property
    def functions(self) -> dict[str, Lengths]:
        """The functions of the package and what lengths each takes; the first is the one that runs by default."""
        if not self.context:
            return {MAIN: self.lengths}
        return {PREFILL: self.lengths, DECODE: Lengths.of(1)}
