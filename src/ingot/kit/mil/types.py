"""Types of values in an ML program, and how each is stored and computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.errors import RefusedInput

Array = npt.NDArray[Any]

#: Elements that one value may have (4 GiB in fp32): no program of a package makes the interpreter take more.
MOST_ELEMENTS = 1 << 30


@dataclass(frozen=True)
class Dtype:
    """An element type: its name in MIL, its bits as stored, what it is outside, what it is computed in.

    fp16 values are computed in fp32 arrays that hold only numbers which fp16 has.
    """

    name: str
    bits: int
    outside: Any
    inside: Any

    @property
    def packed(self) -> bool:
        """Whether elements share bytes."""
        return self.bits < 8

    @property
    def signed(self) -> bool:
        """Whether a packed element's highest bit is its sign."""
        return not self.name.startswith("u")

    @property
    def floats(self) -> bool:
        """Whether it is a floating-point type."""
        return self.name in {"fp16", "fp32", "fp64"}

    def bytes_of(self, elements: int) -> int:
        """The bytes that so many elements are stored in."""
        return -(-elements * self.bits // 8)


def _whole(name: str, bits: int) -> Dtype:
    kind = np.dtype(name)
    return Dtype(name, bits, kind, kind)


def _packed(name: str, bits: int) -> Dtype:
    kind = np.dtype("uint8" if name.startswith("u") else "int8")
    return Dtype(name, bits, kind, kind)


_F32 = np.dtype("float32")

#: By the name that ``MIL.DataType`` gives it.
DTYPES: dict[str, Dtype] = {
    "FLOAT16": Dtype("fp16", 16, np.dtype("float16"), _F32),
    "FLOAT32": Dtype("fp32", 32, _F32, _F32),
    "FLOAT64": Dtype("fp64", 64, np.dtype("float64"), np.dtype("float64")),
    "BOOL": Dtype("bool", 8, np.dtype(bool), np.dtype(bool)),
    "STRING": Dtype("string", 0, np.dtype(object), np.dtype(object)),
    **{f"INT{bits}": _whole(f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": _whole(f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": _packed(f"uint{bits}", bits) for bits in (1, 2, 3, 4, 6)},
    "INT4": _packed("int4", 4),
}

#: The same by the names that ``cast`` uses.
NAMED: dict[str, Dtype] = {dtype.name: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class TensorType:
    """A tensor's element type and shape; None is a size that is known only when it runs."""

    dtype: Dtype
    shape: tuple[int | None, ...]

    @property
    def elements(self) -> int:
        """How many elements it has. RefusedInput (E-MIL-PROGRAM) where that is not fixed, or more than may be."""
        if any(size is None for size in self.shape):
            raise RefusedInput("E-MIL-PROGRAM", f"a constant has a size that is not fixed: {self}")
        count = prod(size for size in self.shape if size is not None)
        if count > MOST_ELEMENTS:
            raise RefusedInput(
                "E-MIL-PROGRAM", f"a constant has {count} elements, more than the {MOST_ELEMENTS} allowed"
            )
        return count

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is of the type."""
        return len(shape) == len(self.shape) and all(
            wanted is None or wanted == size for wanted, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class StateType:
    """A state: a tensor that outlives a call."""

    tensor: TensorType

    def __str__(self) -> str:
        return f"state<{self.tensor}>"


def read_type(proto: Any, names: Any, where: str) -> TensorType | StateType:
    """The type of a ``MIL.ValueType``; ``names`` is ``MIL.DataType``. RefusedInput (E-MIL-PROGRAM) for other kinds."""
    which = proto.WhichOneof("type")
    if which == "stateType":
        inner = read_type(proto.stateType.wrappedType, names, where)
        if isinstance(inner, TensorType):
            return StateType(inner)
    if which != "tensorType":
        raise RefusedInput(
            "E-MIL-PROGRAM", f"{where} is of type {which or 'none'}, and only tensors and states are run"
        )
    tensor = proto.tensorType
    number = tensor.dataType
    name = names.Name(number) if number in names.values() else f"number {number}"
    if name not in DTYPES:
        raise RefusedInput("E-MIL-PROGRAM", f"{where} has elements of type {name}, which is not known here")
    sizes = [int(size.constant.size) if size.HasField("constant") else None for size in tensor.dimensions]
    return TensorType(DTYPES[name], tuple(sizes))
