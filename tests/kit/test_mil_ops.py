"""Every operation of the interpreter against torch in fp64, on random shapes and numbers.

The bounds: an fp32 result is within 1e-6 of the magnitude that was summed or multiplied; an fp16 result is the nearest
fp16 number, or the next to it where the fp32 result was as near to a tie as that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.kit.mil.ops import OPERATIONS, Call
from ingot.kit.mil.rounding import round16
from ingot.kit.mil.types import DTYPES, Array, TensorType

Draw = Callable[..., Array]
_NAMES = {"fp16": "FLOAT16", "fp32": "FLOAT32"}


def run(kind: str, arguments: Mapping[str, Any], dtype: str = "fp32", *, narrow: bool = False, opset: int = 8) -> Any:
    """An operation as a program runs it: results of its type, rounded to it."""
    entry = OPERATIONS[kind]
    call = Call(narrow and dtype == "fp16", opset, (TensorType(DTYPES[_NAMES[dtype]], ()),), wide=dtype == "fp32")
    with np.errstate(all="ignore"):
        found = entry.function(call, **arguments) if entry.called else entry.function(**arguments)
    found = [np.asarray(each) for each in (found if isinstance(found, tuple) else (found,))]
    if dtype == "fp16" and entry.rounds:
        found = [round16(each) for each in found]
    return found[0] if len(found) == 1 else found


@dataclass(frozen=True)
class Case:
    """How arguments are made of a shape, what torch computes, and the magnitude that errors scale with (``size``)."""

    make: Callable[[Draw, tuple[int, ...]], dict[str, Any]]
    right: Callable[..., torch.Tensor]
    size: Callable[..., torch.Tensor] | None = None
    ranks: tuple[int, int] = (1, 4)
    low: float = -4.0


def unary(function: Callable[..., torch.Tensor], low: float = -4.0) -> Case:
    def right(x: torch.Tensor) -> torch.Tensor:
        return function(x)

    return Case(lambda draw, shape: {"x": draw(*shape)}, right, low=low)


def binary(function: Callable[..., torch.Tensor], low: float = -4.0) -> Case:
    def make(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"x": draw(*shape), "y": draw(*[size if index % 2 else 1 for index, size in enumerate(shape)])}

    def right(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return function(x, y)

    return Case(make, right, lambda x, y: x.abs() + y.abs() + function(x, y).abs(), low=low)


def reducing(function: Callable[..., torch.Tensor], size: Callable[..., torch.Tensor] | None = None) -> Case:
    def make(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"x": draw(*shape), "axes": np.array([-1]), "keep_dims": np.array(True)}

    return Case(make, lambda x, **_: function(x), None if size is None else lambda x, **_: size(x))


def _matmul(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    *batch, rows, inner, columns = shape
    return {"x": draw(*batch, inner, rows), "y": draw(columns, inner), "transpose_x": True, "transpose_y": True}


def _linear(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"x": draw(*shape), "weight": draw(5, shape[-1]), "bias": draw(5)}


def _attention(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    heads, length, size = shape
    mask = np.where(np.tri(length, dtype=bool), np.float32(0), np.float32(-1e4))
    shapes = {name: draw(1, heads, length, size) for name in ("query", "key", "value")}
    return {**shapes, "attn_mask": mask}


def _norm(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    last = shape[-1]
    return {"x": draw(*shape), "axes": np.array([-1]), "gamma": draw(last), "beta": draw(last), "epsilon": 1e-3}


def _sum(x: torch.Tensor, **_: Any) -> torch.Tensor:
    return x.abs().sum(-1, keepdim=True)


def _squares(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1, keepdim=True)


CASES: dict[str, Case] = {
    **{name: binary(getattr(torch, name)) for name in ("add", "sub", "mul", "maximum", "minimum")},
    "real_div": binary(torch.div, low=0.25),
    "pow": binary(torch.pow, low=0.25),
    **{
        name: unary(getattr(torch, name))
        for name in ("abs", "sign", "exp", "exp2", "tanh", "sigmoid", "square", "sin", "cos", "erf", "relu")
    },
    **{name: unary(getattr(torch, name)) for name in ("ceil", "floor", "round")},
    "tan": unary(torch.tan, low=3.75),
    "sqrt": unary(torch.sqrt, low=0.0),
    "silu": unary(torch.nn.functional.silu),
    "softplus": unary(torch.nn.functional.softplus),
    "rsqrt": Case(
        lambda draw, shape: {"x": draw(*shape), "epsilon": 1e-2}, lambda x, epsilon: (x + epsilon).rsqrt(), low=0.0
    ),
    "inverse": Case(
        lambda draw, shape: {"x": draw(*shape), "epsilon": 1e-2}, lambda x, epsilon: 1 / (x + epsilon), low=0.25
    ),
    "log": Case(
        lambda draw, shape: {"x": draw(*shape)}, torch.log, lambda x: 1 + x.log().abs(), low=0.25
    ),
    "gelu": Case(lambda draw, shape: {"x": draw(*shape)}, torch.nn.functional.gelu, torch.abs),
    "clip": Case(
        lambda draw, shape: {"x": draw(*shape), "alpha": np.float32(-1), "beta": np.float32(2)},
        lambda x, alpha, beta: x.clamp(alpha, beta),
    ),
    "reduce_sum": reducing(lambda x: x.sum(-1, keepdim=True), _sum),
    "reduce_mean": reducing(lambda x: x.mean(-1, keepdim=True), _sum),
    "reduce_l1_norm": reducing(_sum, _sum),
    "reduce_l2_norm": reducing(lambda x: x.norm(dim=-1, keepdim=True)),
    "reduce_sum_square": reducing(_squares, _squares),
    "reduce_log_sum_exp": reducing(
        lambda x: x.logsumexp(-1, keepdim=True), lambda x, **_: 5 + x.amax(-1, keepdim=True).abs()
    ),
    "reduce_max": reducing(lambda x: x.amax(-1, keepdim=True)),
    "reduce_min": reducing(lambda x: x.amin(-1, keepdim=True)),
    "softmax": Case(lambda draw, shape: {"x": draw(*shape), "axis": -1}, lambda x, axis: x.softmax(axis)),
    "layer_norm": Case(
        _norm,
        lambda x, gamma, beta, epsilon, **_: torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, epsilon),
        lambda x, gamma, beta, **_: 300 * (gamma.abs() + beta.abs() + 0 * x),
    ),
    "matmul": Case(
        _matmul,
        lambda x, y, **_: x.mT @ y.mT,
        lambda x, y, **_: x.mT.abs() @ y.mT.abs(),
        ranks=(3, 5),
    ),
    "linear": Case(
        _linear,
        torch.nn.functional.linear,
        lambda x, weight, bias: torch.nn.functional.linear(x.abs(), weight.abs(), bias.abs()),
    ),
    "scaled_dot_product_attention": Case(
        _attention,
        torch.nn.functional.scaled_dot_product_attention,
        lambda query, value, **_: 8 * value.abs().sum(-2, keepdim=True) + 0 * query,
        ranks=(3, 3),
    ),
    "cumsum": Case(
        lambda draw, shape: {"x": draw(*shape), "axis": -1}, torch.cumsum, lambda x, axis: x.abs().cumsum(axis)
    ),
}  # fmt: skip


def ulp16(x: Array) -> Array:
    """The distance of fp16 numbers at a magnitude."""
    return np.maximum(2.0**-24, 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 2.0**-14))) - 10))


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_computes_what_torch_computes(kind: str, data: st.DataObject) -> None:
    case = CASES[kind]
    shape = data.draw(st.lists(st.integers(1, 6), min_size=case.ranks[0], max_size=case.ranks[1]).map(tuple))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from(["fp32", "fp16"]))

    def draw(*sizes: int) -> Array:
        found: Array = rng.uniform(case.low, 4.0, sizes).astype(np.float32)
        return round16(found) if dtype == "fp16" else found

    arguments = case.make(draw, shape)
    found = run(kind, arguments, dtype)
    wide = {
        key: torch.from_numpy(each).double() if isinstance(each, np.ndarray) else each
        for key, each in arguments.items()
    }
    wanted = case.right(**wide).numpy()
    size = np.abs(wanted) if case.size is None else case.size(**wide).numpy()
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    allowed = 1e-6 * size + 1e-9
    if dtype == "fp16":
        wanted = wanted.astype(np.float16).astype(np.float64)
        allowed = np.where(np.abs(found) <= np.abs(wanted), ulp16(wanted), ulp16(found)) * (allowed > 0) + allowed
    assert (np.abs(found - wanted) <= allowed).all(), f"{found} instead of {wanted}"


@pytest.mark.parametrize("kind", ["add", "mul", "real_div", "sqrt", "silu", "linear", "softmax"])
def test_fp16_is_torchs_own_rounding(kind: str) -> None:
    """Where torch computes fp16 in fp32 and rounds once, nearly every number is the same, none two steps away."""
    rng, case = np.random.default_rng(3), CASES[kind]
    arguments = case.make(lambda *s: round16(rng.uniform(0.25, 4, s).astype(np.float32)), (8, 64))
    half = {
        key: torch.from_numpy(each).half() if isinstance(each, np.ndarray) else each for key, each in arguments.items()
    }
    wanted = case.right(**half).numpy()
    found = run(kind, arguments, "fp16").astype(np.float16)
    steps = np.abs(found.view(np.int16).astype(int) - wanted.view(np.int16).astype(int))
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.99


_INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floor_div": np.floor_divide, "mod": np.mod,
    "equal": np.equal, "not_equal": np.not_equal, "greater": np.greater, "greater_equal": np.greater_equal,
    "less": np.less, "less_equal": np.less_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}  # fmt: skip


@pytest.mark.parametrize("kind", _INTEGERS)
def test_whole_numbers(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 9, (3, 1, 4), np.int32), rng.integers(1, 9, (2, 4), np.int32)
    found = run(kind, {"x": x, "y": y})
    assert (found == _INTEGERS[kind](x, y)).all()
    assert found.dtype in (np.int32, np.bool_)


@dataclass(frozen=True)
class Move:
    """An operation that moves values: its arguments and what torch gives."""

    arguments: dict[str, Any]
    wanted: Any
    opset: int = field(default=8)


_X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
_T = torch.from_numpy(_X)
MOVES: dict[str, list[Move]] = {
    "reshape": [
        Move({"x": _X, "shape": np.array([4, -1])}, _T.reshape(4, -1)),
        Move({"x": _X, "shape": np.array([0, 12])}, _T.reshape(2, 12), opset=6),
        Move({"x": _X.reshape(6, 4), "shape": np.array([1, 0, -1, 0])}, _T.reshape(1, 1, 6, 4)),
    ],
    "transpose": [Move({"x": _X, "perm": np.array([2, 0, -2])}, _T.permute(2, 0, 1))],
    "expand_dims": [Move({"x": _X, "axes": np.array([0, -1])}, _T[None, ..., None])],
    "squeeze": [Move({"x": _X[None], "axes": np.array([0])}, _T), Move({"x": _X[None, :, None]}, _T)],
    "tile": [Move({"x": _X, "reps": np.array([2, 1, 3])}, _T.repeat(2, 1, 3))],
    "concat": [
        Move({"values": [_X, -_X], "axis": np.array(1)}, torch.cat((_T, -_T), 1)),
        Move(
            {"values": [_X, -_X], "axis": np.array(1), "interleave": True}, torch.stack((_T, -_T), 2).reshape(2, 6, 4)
        ),
        Move({"values": [np.int32(3), np.array([4, 5], np.int32)], "axis": np.array(0)}, torch.tensor([3, 4, 5])),
    ],
    "stack": [Move({"values": [_X, -_X], "axis": np.array(-1)}, torch.stack((_T, -_T), -1))],
    "split": [
        Move({"x": _X, "num_splits": np.array(2), "axis": np.array(2)}, _T.chunk(2, 2)),
        Move({"x": _X, "split_sizes": np.array([1, 3]), "axis": np.array(-1)}, _T.split([1, 3], -1)),
    ],
    "slice_by_index": [
        Move({"x": _X, "begin": np.array([0, 1, -3]), "end": np.array([2, 2, 4])}, _T[:, 1:2, -3:]),
        Move(
            {
                "x": _X, "begin": np.array([1, 0, 0]), "end": np.array([0, 0, 0]), "stride": np.array([1, 2, 3]),
                "begin_mask": np.array([False, True, True]), "end_mask": np.array([False, True, True]),
                "squeeze_mask": np.array([True, False, False]),
            },
            _T[1, ::2, ::3],
        ),
        Move(
            {"x": _X, "begin": np.array([0, 0, 3]), "end": np.array([2, 3, 0]), "stride": np.array([1, 1, -1])},
            torch.from_numpy(_X[:, :, 3:0:-1].copy()),
        ),
    ],
    "slice_update": [
        Move(
            {"x": _X, "update": -_X[:, 1:2], "begin": np.array([0, 1, 0]), "end": np.array([2, 2, 4])},
            _T.clone().index_copy(1, torch.tensor([1]), -_T[:, 1:2]),
        )
    ],
    "slice_by_size": [Move({"x": _X, "begin": np.array([0, 1, 2]), "size": np.array([2, -1, 1])}, _T[:, 1:, 2:3])],
    "gather": [
        Move({"x": _X, "indices": np.array([[2, 0]], np.uint16), "axis": np.array(1)}, _T[:, [[2, 0]]]),
        Move({"x": _X, "indices": np.array([1, 0], np.int8), "axis": np.array(0)}, _T[[1, 0]]),
        Move({"x": _X, "indices": np.array([-1], np.int32), "axis": np.array(0)}, _T[[-1]], opset=5),
        Move({"x": _X, "indices": np.array(2, np.uint8), "axis": np.array(2)}, _T[..., 2]),
        Move(
            {"x": _X, "indices": np.array([[2], [0]], np.int32), "axis": np.array(1), "batch_dims": np.array(1)},
            torch.stack((_T[0, [2]], _T[1, [0]])),
        ),
    ],
    "gather_along_axis": [
        Move({"x": _X, "indices": np.array([[[3, 0, 1, 1]] * 3] * 2), "axis": np.array(2)}, _T[:, :, [3, 0, 1, 1]])
    ],
    "reverse": [Move({"x": _X, "axes": np.array([1])}, _T.flip(1))],
    "band_part": [
        Move({"x": _X, "lower": np.array(-1), "upper": np.array(0)}, _T.tril()),
        Move({"x": _X, "lower": np.array(0), "upper": np.array(1)}, _T.triu().tril(1)),
    ],
    "select": [Move({"cond": _X > 3, "a": _X, "b": -_X}, torch.where(_T > 3, _T, -_T))],
    "logical_not": [Move({"x": _X > 3}, ~(_T > 3))],
    "identity": [Move({"x": _X}, _T)],
    "shape": [Move({"x": _X}, torch.tensor([2, 3, 4]))],
    "fill": [Move({"shape": np.array([2, 1]), "value": np.float32(7)}, torch.full((2, 1), 7.0))],
    "fill_like": [Move({"ref_tensor": _X, "value": np.float32(7)}, torch.full((2, 3, 4), 7.0))],
    "range_1d": [
        Move({"start": np.float32(1), "end": np.float32(8), "step": np.float32(3)}, torch.arange(1.0, 8.0, 3.0))
    ],
    "reduce_argmax": [Move({"x": _X, "axis": -1}, _T.argmax(-1))],
    "reduce_argmin": [Move({"x": _X, "axis": 0, "keep_dims": True}, _T.argmin(0, keepdim=True))],
    "cast": [
        Move({"x": np.array([-1.7, 1.7], np.float32), "dtype": "int32"}, torch.tensor([-1, 1])),
        Move({"x": np.array([0.0, 0.5], np.float32), "dtype": "bool"}, torch.tensor([False, True])),
        Move({"x": np.array([3, 70000], np.int32), "dtype": "fp32"}, torch.tensor([3.0, 70000.0])),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "move"), [(kind, move) for kind, moves in MOVES.items() for move in moves])
def test_it_moves_what_torch_moves(kind: str, move: Move) -> None:
    arguments = {key: np.asarray(each) if key == "x" else each for key, each in move.arguments.items()}
    found = run(kind, arguments, opset=move.opset)
    wanted = [each.numpy() for each in (move.wanted if isinstance(move.wanted, tuple) else (move.wanted,))]
    for one, two in zip(found if isinstance(found, list) else [found], wanted, strict=True):
        assert one.shape == two.shape
        assert (one == two).all()


def test_every_operation_is_tested() -> None:
    states = {"read_state", "write_state", "coreml_update_state"}  # in test_mil_model.py
    assert set(OPERATIONS) == {*CASES, *MOVES, *_INTEGERS, *states}


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("gather", {"x": _X, "indices": np.array([9]), "axis": np.array(0)}, "within 2"),
        ("gather", {"x": _X, "indices": np.array([-1]), "axis": np.array(0)}, "within 2"),
        ("cast", {"x": np.array([70000], np.int32), "dtype": "uint16"}, "does not fit"),
        ("cast", {"x": _X, "dtype": "complex"}, "no type"),
        ("tile", {"x": _X, "reps": np.array([1 << 20, 1 << 20, 1])}, "cannot be made"),
        ("fill", {"shape": np.array([1 << 20, 1 << 20])}, "cannot be made"),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1e12), "step": np.float32(1)}, "cannot be made"),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1), "step": np.float32(0)}, "steps of 0"),
        ("add", {"x": np.zeros((1 << 16, 1), np.int8), "y": np.zeros((1, 1 << 16), np.int8)}, "cannot be made"),
        ("matmul", {"x": np.zeros((1 << 16, 1)), "y": np.zeros((1, 1 << 16))}, "cannot be made"),
        ("split", {"x": _X, "split_sizes": np.array([1, 1]), "axis": np.array(2)}, "do not make 4"),
        ("slice_by_size", {"x": _X, "begin": np.array([0, 2, 0]), "size": np.array([1, 2, 1])}, "elements 2 to 4 of 3"),
        ("slice_update", {"x": _X, "update": _X, "begin": np.zeros(3), "end": np.ones(3)}, "an update of"),
    ],
)
def test_what_cannot_be_computed_is_refused(kind: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, IndexError), match=says):
        run(kind, arguments)


@pytest.mark.parametrize("kind", ["sigmoid", "silu", "tanh", "softplus"])
def test_small_results_are_as_exact_as_large_ones(kind: str) -> None:
    x = np.array([-60, -16, -9, -4, -1e-3, 1e-3, 5, 60, 200], np.float32)
    wanted = CASES[kind].right(torch.from_numpy(x).double()).numpy()
    assert np.abs(run(kind, {"x": x}) / wanted - 1).max() < 1e-6


def test_sums_in_fp16_lose_what_fp32_keeps() -> None:
    """2,048 and then ones: in fp16, one at a time, no one is ever added."""
    x = np.ones((1, 3000), np.float32)
    x[0, 0] = 2048
    for kind, arguments in {
        "reduce_sum": {"x": x, "axes": np.array([-1])},
        "linear": {"x": x, "weight": np.ones((1, 3000), np.float32)},
        "matmul": {"x": x, "y": np.ones((3000, 1), np.float32)},
    }.items():
        assert run(kind, arguments, "fp16").item() == round16(np.array([2048.0 + 2999.0], np.float32))
        assert run(kind, arguments, "fp16", narrow=True).item() == 2048.0
        assert run(kind, arguments, narrow=True).item() == 2048.0 + 2999.0


def test_rounding_is_fp16s_own_for_every_kind_of_number() -> None:
    patterns = np.arange(0, 1 << 32, 65_537 - 12_288, dtype=np.uint64).astype(np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    ties = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    for x in (patterns.view(np.float32), halves, ties, *near):
        with np.errstate(all="ignore"):
            wanted = x.astype(np.float16).astype(np.float32)
        found = round16(x.copy())
        number = ~np.isnan(wanted)
        assert (np.isnan(found) == ~number).all()
        assert (found.view(np.uint32)[number] == wanted.view(np.uint32)[number]).all()


def test_rounding_leaves_what_is_not_its_own() -> None:
    x = np.array([[1.0001, 2], [3, 4]], np.float32)
    x.flags.writeable = False
    assert round16(x)[0, 0] == 1
    assert x[0, 0] != 1
