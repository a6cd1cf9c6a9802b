"""Operations on each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ingot.kit.mil.ops.table import bounded, computes, moves
from ingot.kit.mil.types import NAMED, Array

#: Below this many elements on either side no two shapes make more than any value may have.
_HARMLESS = 1 << 15


def _pair(x: Array, y: Array) -> None:
    if x.size > _HARMLESS and y.size > _HARMLESS and x.shape != y.shape:
        bounded(*np.broadcast_shapes(x.shape, y.shape))


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def run(x: Array, y: Array) -> Array:
        _pair(x, y)
        return function(x, y)

    return run


def _single(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        return function(x)

    return run


for _name, _function in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "floor_div": np.floor_divide,
    "mod": np.mod,
}.items():
    computes(_name, integers=True)(_binary(_function))

computes("real_div")(_binary(np.true_divide))
computes("pow")(_binary(np.power))

for _name, _compare in {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}.items():
    moves(_name)(_binary(_compare))

_UNARY: dict[str, Callable[[Array], Array]] = {
    "ceil": np.ceil,
    "cos": np.cos,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "round": np.round,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}
for _name, _unary in _UNARY.items():
    computes(_name)(_single(_unary))

moves("abs")(_single(np.abs))
moves("sign")(_single(np.sign))
moves("logical_not")(_single(np.logical_not))

moves("relu")(lambda x: np.maximum(x, x.dtype.type(0)))
moves("identity")(lambda x: x)
computes("square", integers=True)(lambda x: x * x)


@computes("rsqrt")
def rsqrt(x: Array, epsilon: float | Array = 1e-12) -> Array:
    """``1 / sqrt(x + epsilon)``."""
    return np.asarray(np.float32(1) / np.sqrt(x + np.float32(epsilon)))


@computes("inverse")
def inverse(x: Array, epsilon: float | Array = 1e-4) -> Array:
    """``1 / (x + epsilon)``."""
    return np.asarray(np.float32(1) / (x + np.float32(epsilon)))


@computes("log")
def log(x: Array, epsilon: float | Array = 1e-45) -> Array:
    """``log(x + epsilon)``."""
    return np.asarray(np.log(x + np.float32(epsilon)))


@moves("clip")
def clip(x: Array, alpha: Array, beta: Array) -> Array:
    """Between ``alpha`` and ``beta``."""
    return np.asarray(np.minimum(np.maximum(x, alpha), beta))


@computes("sigmoid")
def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``: near 0 as exact as anywhere, which a form by tanh is not."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 over it is 0
        found: Array = np.asarray(np.exp(-x))
    found += np.float32(1)
    return np.divide(np.float32(1), found, out=found)


@computes("silu")
def silu(x: Array) -> Array:
    """``x / (1 + exp(-x))``."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and x over it is 0
        found: Array = np.asarray(np.exp(-x))
    found += np.float32(1)
    return np.divide(x, found, out=found)


@computes("gelu")
def gelu(x: Array, mode: str = "EXACT") -> Array:
    """Exact, or one of MIL's two approximations."""
    if mode == "TANH_APPROXIMATION":
        inner = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x))
    elif mode == "SIGMOID_APPROXIMATION":
        return np.asarray(x * sigmoid(np.float32(1.702) * x))
    else:
        inner = erf(x / np.float32(math.sqrt(2)))
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + inner))


@computes("erf")
def erf(x: Array) -> Array:
    """The error function, element by element: numpy has none."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), np.float32)


@computes("softplus")
def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``."""
    return np.asarray(np.logaddexp(x, np.float32(0)))


@moves("select")
def select(cond: Array, a: Array, b: Array) -> Array:
    """``a`` where ``cond`` is true, else ``b``."""
    bounded(*np.broadcast_shapes(cond.shape, a.shape, b.shape))
    return np.where(cond, a, b)


@computes("cast", integers=True)
def cast(x: Array, dtype: str) -> Array:
    """Another type; towards zero from fractions to whole numbers. What the new type does not have is refused."""
    kind = NAMED.get(dtype)
    if kind is None or dtype == "string":
        raise ValueError(f"there is no type {dtype!r}")
    if dtype == "bool":
        return np.asarray(x != 0)
    if not kind.floats and x.size and x.dtype != bool:
        limits = np.iinfo(kind.inside)
        if not (x.min() >= limits.min and x.max() <= limits.max):
            raise ValueError(f"{x.min()} … {x.max()} does not fit {dtype}")
    return np.array(x, dtype=kind.inside)
