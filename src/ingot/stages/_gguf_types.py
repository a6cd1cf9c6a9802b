"""The types of a GGUF in llama.cpp's naming: of files, of tensors, and of single tensors by pattern."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ingot.core.stage import Frozen

#: Types that hold any number as it is.
PLAIN = ("F32", "F16", "BF16")

FileType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L",
    "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS",
    "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
]  # fmt: skip
TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S",
    "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip
#: File types some of whose tensors llama.cpp makes with an importance matrix only.
NEEDY = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
#: Bits for a weight in a tensor type; less than in any type that is not here is 1.5.
_BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0,
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625,
}  # fmt: skip


def bits(name: str) -> float:
    """Bits for a weight in a file or tensor type, at the least."""
    return _BITS.get(re.sub(r"(_K)_[SML]$", r"\1", name), 1.5)


class Override(Frozen):
    """A type for the tensors whose GGUF name the pattern is found in; the first of the list that fits counts."""

    tensors: str = Field(min_length=1, description="a regular expression, searched in the tensor's name in the file")
    type: TensorType = Field(description="the type of these tensors")

    @field_validator("tensors")
    @classmethod
    def _means_the_same_everywhere(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        # what Python and llama.cpp (ECMAScript) read differently
        if re.search(r"\(\?(?![:=!])|\\[AZzGQE]|[*+?}]\+|\[\[:|\\[1-9pP]", pattern):
            raise ValueError("uses a form that llama.cpp's regular expressions do not have")
        return pattern
