"""The types of ggml and the file types of llama.cpp, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class GgmlType:
    """A ggml type: its number, how many weights a block holds, and the bytes of a block."""

    number: int
    block: int
    size: int


#: The types that tensors are written in, by the name gguf-py gives them (ggml's ``type_traits``).
GGML_TYPES: dict[str, GgmlType] = {
    "F32": GgmlType(0, 1, 4), "F16": GgmlType(1, 1, 2), "BF16": GgmlType(30, 1, 2),
    "Q4_0": GgmlType(2, 32, 18), "Q4_1": GgmlType(3, 32, 20), "Q5_0": GgmlType(6, 32, 22), "Q5_1": GgmlType(7, 32, 24),
    "Q8_0": GgmlType(8, 32, 34), "IQ4_NL": GgmlType(20, 32, 18), "MXFP4": GgmlType(39, 32, 17),
    "Q2_K": GgmlType(10, 256, 84), "Q3_K": GgmlType(11, 256, 110), "Q4_K": GgmlType(12, 256, 144),
    "Q5_K": GgmlType(13, 256, 176), "Q6_K": GgmlType(14, 256, 210), "IQ2_XXS": GgmlType(16, 256, 66),
    "IQ2_XS": GgmlType(17, 256, 74), "IQ3_XXS": GgmlType(18, 256, 98), "IQ1_S": GgmlType(19, 256, 50),
    "IQ3_S": GgmlType(21, 256, 110), "IQ2_S": GgmlType(22, 256, 82), "IQ4_XS": GgmlType(23, 256, 136),
    "IQ1_M": GgmlType(29, 256, 56), "TQ1_0": GgmlType(34, 256, 54), "TQ2_0": GgmlType(35, 256, 66),
}  # fmt: skip

#: File type → its number in ``general.file_type``, and the type that its matrices have where no rule says otherwise.
FILE_TYPES: dict[str, tuple[int, str]] = {
    "F32": (0, "F32"), "F16": (1, "F16"), "BF16": (32, "BF16"),
    "Q4_0": (2, "Q4_0"), "Q4_1": (3, "Q4_1"), "Q8_0": (7, "Q8_0"), "Q5_0": (8, "Q5_0"), "Q5_1": (9, "Q5_1"),
    "Q2_K": (10, "Q2_K"), "Q2_K_S": (21, "Q2_K"),
    "Q3_K_S": (11, "Q3_K"), "Q3_K_M": (12, "Q3_K"), "Q3_K_L": (13, "Q3_K"),
    "Q4_K_S": (14, "Q4_K"), "Q4_K_M": (15, "Q4_K"), "Q5_K_S": (16, "Q5_K"), "Q5_K_M": (17, "Q5_K"),
    "Q6_K": (18, "Q6_K"),
    "IQ1_S": (24, "IQ1_S"), "IQ1_M": (31, "IQ1_M"),
    "IQ2_XXS": (19, "IQ2_XXS"), "IQ2_XS": (20, "IQ2_XS"), "IQ2_S": (28, "IQ2_XS"), "IQ2_M": (29, "IQ2_S"),
    "IQ3_XXS": (23, "IQ3_XXS"), "IQ3_XS": (22, "IQ3_S"), "IQ3_S": (26, "IQ3_S"), "IQ3_M": (27, "IQ3_S"),
    "IQ4_NL": (25, "IQ4_NL"), "IQ4_XS": (30, "IQ4_XS"), "TQ1_0": (36, "TQ1_0"), "TQ2_0": (37, "TQ2_0"),
}  # fmt: skip

PLAIN = frozenset({"F32", "F16", "BF16"})


def row_bytes(kind: str, columns: int) -> int:
    """The bytes of a row. ValueError where it is no whole number of blocks."""
    ggml = GGML_TYPES[kind]
    if columns % ggml.block:
        raise ValueError(f"a row of {columns} is no whole number of {kind} blocks of {ggml.block}")
    return columns // ggml.block * ggml.size


def tensor_bytes(kind: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor's data, without padding."""
    return row_bytes(kind, shape[-1]) * prod(shape[:-1])
