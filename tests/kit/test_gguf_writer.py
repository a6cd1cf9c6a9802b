"""GGUF files are written so that a strict reader finds exactly what was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ingot.kit.gguf import writer as w
from ingot.kit.gguf.reader import read_gguf

FIELDS = [
    w.text("general.architecture", "llama"),
    w.u32("a.number", 7),
    w.f32("a.real", 0.5),
    w.flag("a.flag", value=True),
    w.texts("a.texts", ["", "ü", "▁x"]),
    w.f32s("a.reals", [0.0, -1.5]),
    w.i32s("a.numbers", [-1, 3]),
]


def _view(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(array.tobytes())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    first, second = np.arange(15, dtype=np.float32).reshape(3, 5), np.arange(4, dtype=np.float16)
    infos = [w.TensorInfo("first", (3, 5), "F32"), w.TensorInfo("second", (4,), "F16")]
    w.write_gguf(tmp_path / "x.gguf", FIELDS, infos, [_view(first), _view(second)])
    read = read_gguf(tmp_path / "x.gguf")
    assert {key: list(v) if isinstance(v, np.ndarray) else v for key, v in read.metadata.items()} == {
        "general.architecture": "llama", "a.number": 7, "a.real": 0.5, "a.flag": True,
        "a.texts": ["", "ü", "▁x"], "a.reals": [0.0, -1.5], "a.numbers": [-1, 3],
    }  # fmt: skip
    assert [(info.name, info.shape, info.type) for info in read.tensors] == [
        ("first", (3, 5), "F32"),
        ("second", (4,), "F16"),
    ]
    assert np.array_equal(read.dequantized(read.tensors[0]), first)
    assert np.array_equal(read.dequantized(read.tensors[1]), second.astype(np.float32))


def test_data_of_another_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 bytes given, 24 expected"):
        w.write_gguf(tmp_path / "x.gguf", [], [w.TensorInfo("t", (6,), "F32")], [_view(np.zeros(5, np.float32))])


def test_missing_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        w.write_gguf(tmp_path / "x.gguf", [], [w.TensorInfo("t", (6,), "F32")], [])


@pytest.mark.parametrize("twice", ["field", "tensor"])
def test_a_name_given_twice_is_an_error(tmp_path: Path, twice: str) -> None:
    fields = FIELDS[:1] * 2 if twice == "field" else []
    infos = [w.TensorInfo("t", (1,), "F32")] * 2 if twice == "tensor" else []
    with pytest.raises(ValueError, match=f"a {twice} occurs twice"):
        w.write_gguf(tmp_path / "x.gguf", fields, infos, [])
