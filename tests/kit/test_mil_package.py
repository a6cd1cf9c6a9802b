"""Packages are read by their documented form: weights of every type, compressed ones, none that was tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.errors import RefusedInput
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.proto import modules
from ingot.kit.mil.types import Array
from milkit import Function, pack, set_type, write, write_model

_ROOT = "Data/com.apple.CoreML"


def decoded(tmp_path: Path, kind: str, number: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> Array:
    """What a compressed constant adds to zeros, after it was saved and read back. Arguments: (content, type)."""
    function = Function()
    function.input("x", number, shape)
    operation = function.block.operations.add(type=kind)
    for name, (content, stored) in arguments.items():
        # the first generation has attributes, the second inputs
        first = {"shape", "axis", "source_val"} & set(arguments)
        value = operation.attributes[name] if first else operation.inputs[name].arguments.add().value
        function.fill(value, content, stored, blob=np.asarray(content).size > 4)
    set_type(operation.outputs.add(name="w").type, number, shape)
    function.op("add", [("y", number, shape)], {"x": "x", "y": "w"})
    function.output("y")
    package = write(tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}.mlpackage", function)
    model = MilModel(package)
    weight = model.runners["main"].constant("w")
    assert (weight == weight.astype(number)).all(), "decoded to numbers that the type has not"
    return model.run({"x": np.zeros(shape, number)})["y"]


@pytest.mark.parametrize(
    ("bits", "kind"), [(1, "uint1"), (2, "uint2"), (3, "uint3"), (4, "uint4"), (6, "uint6"), (8, "uint8")]
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 9)), seed=st.integers(0, 999))
def test_palettes_of_every_width(tmp_path: Path, bits: int, kind: str, shape: tuple[int, int], seed: int) -> None:
    rng, (rows, columns) = np.random.default_rng(seed), shape
    table = rng.normal(size=1 << bits).astype(np.float16)
    indices = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    arguments = {"indices": (indices, kind), "lut": (table.reshape(1, 1, -1, 1), "float16")}
    found = decoded(tmp_path, "constexpr_lut_to_dense", "float16", (rows, columns), arguments)
    assert (found == table[indices]).all()
    if bits == 3:
        return  # a width that only the second generation has
    flat = np.frombuffer(pack(indices, bits), np.uint8)
    old = {
        "indices": (flat, "uint8"),
        "lut": (table, "float16"),
        "shape": (np.array(indices.shape, np.uint32), "uint32"),
    }
    assert (decoded(tmp_path, "constexpr_lut_to_dense", "float16", (rows, columns), old) == table[indices]).all()


def test_palettes_by_group_and_of_vectors(tmp_path: Path) -> None:
    """The examples of MIL's own definition."""
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float16).reshape(2, 1, 4, 1)
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    arguments = {"indices": (indices, "uint2"), "lut": (lut, "float16")}
    found = decoded(tmp_path, "constexpr_lut_to_dense", "float16", (6, 2), arguments)
    assert found.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    vectors = np.array([[1, 2, 3], [4, 5, 6]], np.float16).reshape(1, 1, 1, 2, 3)
    at = np.array([0, 0, 1, 0, 1, 1, 0, 0], np.uint8).reshape(2, 2, 2)
    for axis, shape in ((1, (2, 6, 2)), (2, (2, 2, 6))):
        found = decoded(
            tmp_path,
            "constexpr_lut_to_dense",
            "float16",
            shape,
            {"indices": (at, "uint1"), "lut": (vectors, "float16"), "vector_axis": (np.array(axis, np.int32), "int32")},
        )
        assert found[0].tolist() == (
            [[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]] if axis == 1 else [[1, 2, 3] * 2, [4, 5, 6, 1, 2, 3]]
        )


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), seed=st.integers(0, 999))
def test_scales_by_block(tmp_path: Path, kind: str, sizes: tuple[int, int, int], seed: int) -> None:
    rng, bits, (rows, blocks, size) = np.random.default_rng(seed), int(kind.lstrip("uint")), sizes
    low = 0 if kind.startswith("u") else -(1 << (bits - 1))
    whole = np.uint8 if kind.startswith("u") else np.int8
    data = rng.integers(low, low + (1 << bits), (rows, blocks * size)).astype(whole)
    offset = rng.integers(low, low + (1 << bits), (rows, blocks)).astype(whole)
    scale = rng.uniform(0.01, 1, (rows, blocks)).astype(np.float16)
    arguments = {"data": (data, kind), "scale": (scale, "float16"), "offset": (offset, kind)}
    found = decoded(tmp_path, "constexpr_blockwise_shift_scale", "float16", data.shape, arguments)
    wide = [np.repeat(each.astype(np.float64), size, 1) for each in (scale, offset)]
    assert (found == (wide[0] * (data - wide[1])).astype(np.float16)).all()


def test_scales_by_row_and_missing_numbers(tmp_path: Path) -> None:
    data, scale = np.arange(-6, 6, dtype=np.int8).reshape(3, 4), np.array([0.1, 2, 3], np.float16)
    zero = np.array([1, 0, -1], np.int8)
    arguments = {
        "quantized_data": (data, "int8"), "zero_point": (zero, "int8"), "scale": (scale, "float16"),
        "axis": (np.array(0, np.int32), "int32"),
    }  # fmt: skip
    found = decoded(tmp_path, "constexpr_affine_dequantize", "float16", (3, 4), arguments)
    wanted = scale.astype(np.float64)[:, None] * (data.astype(np.float64) - zero[:, None])
    assert (found == wanted.astype(np.float16)).all()
    mask = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    values = np.array([1.5, 2.5, 3.5], np.float16)
    new = {"nonzero_data": (values, "float16"), "mask": (mask, "uint1")}
    assert decoded(tmp_path, "constexpr_sparse_to_dense", "float16", (2, 3), new).tolist() == [
        [1.5, 0, 2.5],
        [0, 0, 3.5],
    ]
    old = {
        "nonzero_data": (values, "float16"), "mask": (np.frombuffer(pack(mask, 1), np.uint8), "uint8"),
        "shape": (np.array([2, 3], np.uint32), "uint32"),
    }  # fmt: skip
    assert decoded(tmp_path, "constexpr_sparse_to_dense", "float16", (2, 3), old).tolist() == [
        [1.5, 0, 2.5],
        [0, 0, 3.5],
    ]
    cast = {"source_val": (values, "float16"), "output_dtype": ("fp32", None)}
    assert decoded(tmp_path, "constexpr_cast", "float32", (3,), cast).tolist() == [1.5, 2.5, 3.5]


def small(path: Path) -> Path:
    """A package with a weight in its blob file: ``y = x + w``."""
    function = Function()
    function.input("x", "float32", (2, 8))
    function.const("w", np.arange(16, dtype=np.float32).reshape(2, 8), blob=True)
    function.op("add", [("y", "float32", (2, 8))], {"x": "x", "y": "w"})
    function.output("y")
    return write(path, function)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return small(tmp_path / "small.mlpackage")


def test_a_saved_program_runs(package: Path) -> None:
    model = MilModel(package)
    assert (model.run({"x": np.ones((2, 8), np.float32)})["y"] == 1 + np.arange(16).reshape(2, 8)).all()


def _bytes(package: Path, edit: Callable[[bytearray], None]) -> None:
    path = package / _ROOT / "weights/weight.bin"
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


def _message(package: Path, edit: Callable[[Any], object]) -> None:
    path = package / _ROOT / "model.mlmodel"
    model = modules()[0].Model.FromString(path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString())


def _manifest(package: Path, where: str) -> None:
    (package / "Manifest.json").write_text(
        json.dumps({"itemInfoEntries": {"A": {"path": where}}, "rootModelIdentifier": "A"}), encoding="utf-8"
    )


def _const(model: Any) -> Any:
    return model.mlProgram.functions["main"].block_specializations["CoreML8"].operations[0]


def _blob(model: Any) -> Any:
    return _const(model).attributes["val"].blobFileValue


def _op(model: Any) -> Any:
    return model.mlProgram.functions["main"].block_specializations["CoreML8"].operations[1]


def _huge(model: Any) -> None:
    for message in (_const(model).attributes["val"].type, _const(model).outputs[0].type):
        for dimension in message.tensorType.dimensions:
            dimension.constant.size = 1 << 40


def changed(edit: Callable[[bytearray], None]) -> Callable[[Path], None]:
    return lambda package: _bytes(package, edit)


def message(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda package: _message(package, edit)


DAMAGE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "no manifest": ("E-MIL-PACKAGE", "no Manifest.json", lambda p: (p / "Manifest.json").unlink()),
    "no JSON": ("E-NOT-HF", "not valid JSON", lambda p: (p / "Manifest.json").write_text("{")),
    "a list": ("E-MIL-PACKAGE", "does not say", lambda p: (p / "Manifest.json").write_text("[]")),
    "leads up": ("E-MIL-PACKAGE", "no plain path", lambda p: _manifest(p, "../../../etc/passwd")),
    "leads away": ("E-MIL-PACKAGE", "no plain path", lambda p: _manifest(p, "/etc/passwd")),
    "leads nowhere": ("E-MIL-PACKAGE", "not a file inside", lambda p: _manifest(p, "com.apple.CoreML/other")),
    "no message": ("E-MIL-PACKAGE", "damaged", lambda p: (p / _ROOT / "model.mlmodel").write_bytes(b"\xff" * 64)),
    "empty": ("E-MIL-PACKAGE", "kind none", lambda p: (p / _ROOT / "model.mlmodel").write_bytes(b"")),
    "weights cut": ("E-MIL-BLOB", "no sound blob at byte 64", changed(lambda b: b.__delitem__(slice(150, None)))),
    "weights gone": ("E-MIL-PACKAGE", "not a file inside", lambda p: (p / _ROOT / "weights/weight.bin").unlink()),
    "no header": (
        "E-MIL-BLOB",
        "fewer than its header",
        lambda p: (p / _ROOT / "weights/weight.bin").write_bytes(b"x"),
    ),
    "mark gone": ("E-MIL-BLOB", "no sound blob", changed(lambda b: b.__setitem__(64, 0))),
    "another type": ("E-MIL-BLOB", "not 64 bytes of fp32", changed(lambda b: b.__setitem__(68, 1))),
    "another size": ("E-MIL-BLOB", "60 bytes", changed(lambda b: b.__setitem__(72, 60))),
    "offset outside": ("E-MIL-BLOB", "no sound blob at byte", message(lambda m: setattr(_blob(m), "offset", 1 << 40))),
    "offset between": ("E-MIL-BLOB", "no sound blob at byte", message(lambda m: setattr(_blob(m), "offset", 72))),
    "another file": (
        "E-MIL-PACKAGE",
        "outside of the package",
        message(lambda m: setattr(_blob(m), "fileName", "/etc/x")),
    ),
    "a file above": (
        "E-MIL-PACKAGE",
        "no plain path",
        message(lambda m: setattr(_blob(m), "fileName", "@model_path/../x")),
    ),
    "huge shape": ("E-MIL-PROGRAM", "more than", message(_huge)),
    "unknown name": (
        "E-MIL-PROGRAM",
        "reads 'z'",
        message(lambda m: setattr(_op(m).inputs["y"].arguments[0], "name", "z")),
    ),
    "defined twice": ("E-MIL-PROGRAM", "exists before", message(lambda m: setattr(_op(m).outputs[0], "name", "w"))),
    "no such output": (
        "E-MIL-PROGRAM",
        "nothing in it gives",
        message(lambda m: _outputs(m, "q")),
    ),
    "lacks a parameter": ("E-MIL-PROGRAM", "lacks its parameter y", message(lambda m: _op(m).inputs.pop("y"))),
    "unknown parameter": ("E-MIL-OP", "its parameter z", message(lambda m: _op(m).inputs["z"].arguments.add(name="x"))),
    "unknown operation": (
        "E-MIL-OP",
        "crop_resize (y, operation 1 of function main)",
        message(lambda m: setattr(_op(m), "type", "crop_resize")),
    ),
    "a loop": ("E-MIL-OP", "operations of its own", message(lambda m: _op(m).blocks.add())),
    "unknown generation": (
        "E-MIL-PROGRAM",
        "has no block",
        message(lambda m: setattr(m.mlProgram.functions["main"], "opset", "X")),
    ),
    "no description": ("E-MIL-PROGRAM", "does not describe", message(lambda m: m.description.ClearField("input"))),
    "another function": (
        "E-MIL-PROGRAM",
        "describes the functions",
        message(lambda m: m.description.functions.add(name="f")),
    ),
}


def _outputs(model: Any, name: str) -> None:
    model.mlProgram.functions["main"].block_specializations["CoreML8"].outputs[0] = name


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_before_anything_runs(package: Path, damage: str) -> None:
    code, says, edit = DAMAGE[damage]
    edit(package)
    with pytest.raises(RefusedInput) as refused:
        MilModel(package)
    assert refused.value.code == code
    assert says in str(refused.value)


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    weights = package / _ROOT / "weights/weight.bin"
    shutil.move(weights, outside)
    weights.symlink_to(outside)
    with pytest.raises(RefusedInput, match="not a file inside"):
        MilModel(package)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, 10_000), value=st.integers(0, 255), file=st.sampled_from(["model.mlmodel", "weights/weight.bin"])
)
def test_any_changed_byte_is_refused_or_runs(package: Path, at: int, value: int, file: str) -> None:
    path = package / _ROOT / file
    before = path.read_bytes()
    content = bytearray(before)
    content[at % len(content)] = value
    path.write_bytes(content)
    code = "E-MIL-"
    try:
        model = MilModel(package)
        model.run({name: np.ones((2, 8), np.float32) for name in model.functions[model.default].inputs})
    except RefusedInput as error:
        code = error.code
    finally:
        path.write_bytes(before)
    assert code.startswith("E-MIL-")


def test_a_constant_of_another_size_is_refused(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (3,))
    function.const("w", np.ones(3, np.float32))
    function.op("add", [("y", "float32", (3,))], {"x": "x", "y": "w"})
    function.output("y")
    function.block.operations[0].attributes["val"].immediateValue.tensor.floats.values.append(1.0)
    function.block.operations[0].attributes["val"].immediateValue.tensor.floats.values.append(1.0)
    with pytest.raises(RefusedInput, match="has 5 elements"):
        MilModel(write(tmp_path / "x.mlpackage", function))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    model = modules()[0].Model(specificationVersion=4)
    model.neuralNetwork.SetInParent()
    with pytest.raises(RefusedInput, match="of kind neuralNetwork"):
        MilModel(write_model(tmp_path / "x.mlpackage", model, bytes(64)))
