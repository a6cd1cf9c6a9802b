"""Programs as a whole: interfaces, states, functions, what is kept in memory, what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.errors import RefusedInput
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.run import Wanted
from milkit import Blobs, Function, write


def doubling(function: Function, shape: tuple[int | None, ...], kind: str = "float32") -> Function:
    """``y = x + x``."""
    function.op("add", [("y", kind, shape)], {"x": "x", "y": "x"})
    function.output("y")
    return function


def code_of(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(RefusedInput) as refused:
        call(*arguments, **named)
    return refused.value.code


def test_only_declared_shapes_are_taken(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (1, 8), (1, 16))
    listed = MilModel(write(tmp_path / "a.mlpackage", doubling(function, (1, None))))
    for size, taken in {8: True, 16: True, 9: False, 32: False}.items():
        inputs = {"x": np.ones((1, size), np.float32)}
        if taken:
            assert listed.run(inputs)["y"].shape == (1, size)
        else:
            assert code_of(listed.run, inputs) == "E-MIL-INPUT"
    function = Function()
    function.range("x", "float32", (1, 1), (2, 5))
    ranged = MilModel(write(tmp_path / "b.mlpackage", doubling(function, (1, None))))
    for size in range(1, 8):
        inputs = {"x": np.ones((1, size), np.float32)}
        if 2 <= size <= 5:
            assert (ranged.run(inputs)["y"] == 2).all()
        else:
            assert code_of(ranged.run, inputs) == "E-MIL-INPUT"


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"z": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 4))},
        {"x": np.ones((1, 4), np.int32)},
        {"x": np.ones(4, np.float32)},
    ],
)
def test_other_inputs_are_refused(tmp_path: Path, inputs: dict[str, Any]) -> None:
    function = Function()
    function.input("x", "float32", (1, 4))
    model = MilModel(write(tmp_path / "a.mlpackage", doubling(function, (1, 4))))
    assert code_of(model.run, inputs) == "E-MIL-INPUT"


def test_values_keep_the_types_of_the_program(tmp_path: Path) -> None:
    for kind in ("float16", "float32", "int32"):
        function = Function()
        function.input("x", kind, (3,))
        model = MilModel(write(tmp_path / f"{kind}.mlpackage", doubling(function, (3,), kind)))
        found = model.run({"x": np.array([1, 2, 30000], kind)})["y"]
        assert found.dtype == np.dtype(kind)
        assert found.tolist() == [2, 4, 60000]


def test_a_result_of_another_shape_than_declared_is_refused(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (1, 4))
    model = MilModel(write(tmp_path / "a.mlpackage", doubling(function, (1, 5))))
    assert code_of(model.run, {"x": np.ones((1, 4), np.float32)}) == "E-MIL-PROGRAM"


def test_more_results_than_an_operation_gives_are_refused(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (4,))
    function.op("add", [("y", "float32", (4,)), ("z", "float32", (4,))], {"x": "x", "y": "x"})
    function.output("y")
    model = MilModel(write(tmp_path / "a.mlpackage", function))
    assert code_of(model.run, {"x": np.ones(4, np.float32)}) == "E-MIL-PROGRAM"


def test_a_word_in_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (4,))
    function.op("add", [("y", "float32", (4,))], {"x": "x", "y": "a word"})
    function.output("y")
    model = MilModel(write(tmp_path / "a.mlpackage", function))
    assert code_of(model.run, {"x": np.ones(4, np.float32)}) == "E-MIL-RUN"


def test_what_an_operation_cannot_compute_names_it(tmp_path: Path) -> None:
    function = Function()
    function.input("i", "int32", (2,))
    function.op("gather", [("y", "float32", (2,))], {"x": np.ones(3, np.float32), "indices": "i", "axis": np.array(0)})
    function.output("y")
    model = MilModel(write(tmp_path / "a.mlpackage", function))
    with pytest.raises(RefusedInput, match=r"gather \(y, operation 2 of function main\)") as refused:
        model.run({"i": np.array([0, 3], np.int32)})
    assert refused.value.code == "E-MIL-RUN"


def test_all_that_is_not_run_is_named_at_once(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "int32", (3,))
    function.op("conv", [("c", "float32", (3,))], {"x": "x"})
    function.op("real_div", [("d", "int32", (3,))], {"x": "x", "y": "x"})
    function.block.operations.add(type="constexpr_lut_to_sparse").outputs.add(name="e").type.CopyFrom(
        function.block.operations[0].outputs[0].type
    )
    function.output("d")
    with pytest.raises(RefusedInput, match="3 operations") as refused:
        MilModel(write(tmp_path / "a.mlpackage", function))
    assert refused.value.code == "E-MIL-OP"
    text = str(refused.value)
    for name in ("conv (c,", "real_div (d,", "floating-point numbers only", "constexpr_lut_to_sparse (e,"):
        assert name in text


def counter(name: str, blobs: Blobs, step: float) -> Function:
    """Adds ``x`` times a weight to a state, at a place that ``i`` says; gives the state."""
    function = Function(name, blobs=blobs)
    function.input("x", "float16", (1,))
    function.input("i", "int32", (1,))
    function.state("s", "float16", (4,))
    function.op("read_state", [("old", "float16", (4,))], {"input": "s"})
    function.const("w", np.full(1, step, np.float16), blob=True)
    function.op("mul", [("more", "float16", (1,))], {"x": "x", "y": "w"})
    function.op("add", [("end", "int32", (1,))], {"x": "i", "y": np.array([1])})
    function.op("slice_update", [("new", "float16", (4,))], {"x": "old", "update": "more", "begin": "i", "end": "end"})
    function.op("write_state", [], {"input": "s", "data": "new"})
    function.op("read_state", [("again", "float16", (4,))], {"input": "s"})
    function.op("identity", [("y", "float16", (4,))], {"x": "again"})
    function.output("y")
    return function


def test_states_outlive_calls_and_are_shared_by_functions(tmp_path: Path) -> None:
    blobs = Blobs()
    model = MilModel(write(tmp_path / "a.mlpackage", counter("one", blobs, 1.0), counter("two", blobs, 2.0)))
    assert set(model.functions) == {"one", "two"}
    assert model.default == "one"
    first, second = model.state(), model.state()

    def call(function: str, at: int, state: Any) -> list[float]:
        inputs = {"x": np.array([3], np.float16), "i": np.array([at], np.int32)}
        found: list[float] = model.run(inputs, function=function, state=state)["y"].tolist()
        return found

    assert call("one", 0, first) == [3, 0, 0, 0]
    assert call("two", 2, first) == [3, 0, 6, 0]
    assert call("one", 1, second) == [0, 3, 0, 0]
    assert call("one", 3, first) == [3, 0, 6, 3]
    assert code_of(model.run, {}, state={}) == "E-MIL-INPUT"
    with pytest.raises(RefusedInput, match="an update of"):
        call("one", 4, first)


#: What is looked at of a state into whose first half ones are written: how, and what must be seen.
LOOKS: dict[str, list[float]] = {
    "a part before": [0, 0], "what is updated": [0, 0, 0, 0], "in between": [0, 0, 0, 0], "afterwards": [1, 1, 0, 0],
    "never written": [0, 0, 0, 0],
}  # fmt: skip


def looking(look: str) -> Function:
    """Reads a state, writes ones into what was read, puts it back, and gives what the look is at."""
    function = Function()
    function.input("x", "float32", (2,))
    function.state("s", "float32", (4,))
    function.op("read_state", [("before", "float32", (4,))], {"input": "s"})
    half = {"x": "before", "begin": np.array([0]), "size": np.array([2])}
    function.op("slice_by_size", [("a part before", "float32", (2,))], half)
    function.op("read_state", [("old", "float32", (4,))], {"input": "s"})
    where = {"begin": np.array([0]), "end": np.array([2])}
    function.op("slice_update", [("new", "float32", (4,))], {"x": "old", "update": "x", **where})
    if look == "in between":
        function.op("read_state", [("in between", "float32", (4,))], {"input": "s"})
    if look != "never written":
        function.op("write_state", [], {"input": "s", "data": "new"})
    function.op("read_state", [("afterwards", "float32", (4,))], {"input": "s"})
    seen = {"what is updated": "old", "never written": "afterwards"}.get(look, look)
    function.op("identity", [("y", "float32", (len(LOOKS[look]),))], {"x": seen})
    function.output("y")
    return function


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("look", LOOKS)
def test_a_state_is_written_in_place_only_where_nobody_sees_it(tmp_path: Path, look: str, held: bool) -> None:
    model = MilModel(write(tmp_path / "a.mlpackage", looking(look)))
    state = model.state()
    kept = [state["s"]] if held else []
    assert model.run({"x": np.ones(2, np.float32)}, state=state)["y"].tolist() == LOOKS[look]
    assert all(not array.any() for array in kept), "who holds the state's array sees it as it was"
    assert state["s"].tolist() == ([0, 0, 0, 0] if look == "never written" else [1, 1, 0, 0])


def test_every_result_is_rounded_to_its_type(tmp_path: Path) -> None:
    """2,048 + 1 is no fp16 number: what is left of the 1 is nothing."""
    for kind, left in (("float16", 0), ("float32", 1)):
        function = Function()
        function.input("x", kind, (1,))
        function.op("add", [("more", kind, (1,))], {"x": "x", "y": np.ones(1, kind)})
        function.op("sub", [("y", kind, (1,))], {"x": "more", "y": "x"})
        function.output("y")
        model = MilModel(write(tmp_path / f"{kind}.mlpackage", function))
        assert model.run({"x": np.array([2048], kind)})["y"].tolist() == [left]


def test_a_state_that_nobody_else_holds_is_not_copied(tmp_path: Path) -> None:
    blobs = Blobs()
    model = MilModel(write(tmp_path / "a.mlpackage", counter("main", blobs, 1.0)))
    state, inputs = model.state(), {"x": np.array([3], np.float16), "i": np.array([1], np.int32)}
    at = state["s"].__array_interface__["data"]
    assert model.run(inputs, state=state)["y"].tolist() == [0, 3, 0, 0]
    assert state["s"].__array_interface__["data"] == at


def test_an_update_that_gives_the_state_is_run_too(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (2,))
    function.state("s", "float32", (2,))
    function.op("coreml_update_state", [("y", "float32", (2,))], {"state": "s", "value": "x"})
    function.op("read_state", [("z", "float32", (2,))], {"input": "s"})
    function.op("add", [("sum", "float32", (2,))], {"x": "y", "y": "z"})
    function.output("sum")
    model = MilModel(write(tmp_path / "a.mlpackage", function))
    assert model.run({"x": np.array([1, 2], np.float32)})["sum"].tolist() == [2, 4]


def product(path: Path, rows: int = 6, inner: int = 80) -> Path:
    """``y = linear(x, w)`` with a big stored matrix."""
    function = Function()
    function.input("x", "float16", (1, rows, inner))
    weight = np.random.default_rng(0).normal(size=(100, inner)).astype(np.float16)
    function.const("w", weight, blob=True)
    function.op("linear", [("y", "float16", (1, rows, 100))], {"x": "x", "weight": "w"})
    function.output("y")
    return write(path, function)


def test_memory_is_bounded_where_asked_for(tmp_path: Path) -> None:
    path = product(tmp_path / "a.mlpackage")
    x = {"x": np.random.default_rng(1).normal(size=(1, 6, 80)).astype(np.float16)}
    kept, not_kept = MilModel(path), MilModel(path, keep=0)
    assert (kept.run(x)["y"] == not_kept.run(x)["y"]).all()
    runner = kept.runners["main"]
    assert runner.constant("w") is runner.constant("w")
    other = not_kept.runners["main"]
    assert other.constant("w") is not other.constant("w")


def test_rows_that_nobody_asked_for_are_not_multiplied(tmp_path: Path) -> None:
    path = product(tmp_path / "a.mlpackage")
    x = {"x": np.random.default_rng(1).normal(size=(1, 6, 80)).astype(np.float16)}
    model = MilModel(path)
    assert model.runners["main"].head == "y"
    whole = model.compute(x, "main", None, Wanted())["y"]
    part = model.compute(x, "main", None, Wanted(rows=slice(2, 4)))["y"]
    assert part.shape == (1, 2, 100)
    assert (part == whole[:, 2:4]).all()


def test_sums_in_fp16_are_an_option_of_the_model(tmp_path: Path) -> None:
    path = product(tmp_path / "a.mlpackage")
    x = {"x": np.random.default_rng(1).normal(size=(1, 6, 80)).astype(np.float16)}
    wide, narrow = MilModel(path).run(x)["y"], MilModel(path, accumulate="float16").run(x)["y"]
    difference = np.abs(wide.astype(np.float32) - narrow.astype(np.float32)).max()
    assert 0 < difference < 0.3
