"""Safetensors headers bent in every field are refused; what the reference writer writes passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.errors import RefusedInput
from ingot.kit.hf import write_safetensors
from ingot.kit.safetensors_check import check_file


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path: Path, header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.fault("M4", "a safetensors header bent in each field")
@pytest.mark.parametrize(
    ("header", "more", "code"),
    [
        (b"{", {}, "E-ST-HEADER"),
        ([], {}, "E-ST-HEADER"),
        (b'{"a":{},"a":{}}', {}, "E-ST-DUPKEY"),
        (b"[" * 100_000, {}, "E-ST-HEADER"),
        ({"a": one()}, {"length": 1 << 40}, "E-ST-SIZE"),
        ({"a": one()}, {"length": 10_000}, "E-ST-SIZE"),
        ({"a": {**one(), "more": 1}}, {}, "E-ST-HEADER"),
        ({"a": one(dtype="PICKLE")}, {}, "E-ST-DTYPE"),
        ({"a": one(shape=(-2,))}, {}, "E-ST-HEADER"),
        ({"a": one(shape=(True, 2))}, {}, "E-ST-HEADER"),
        ({"a": one(shape=(1 << 60,))}, {}, "E-ST-HEADER"),
        ({"a": one(shape=(3,))}, {}, "E-ST-BOUNDS"),
        ({"a": one(offsets=(8, 0))}, {}, "E-ST-BOUNDS"),
        ({"a": one(offsets=(8, 16))}, {"data": b"\0" * 16}, "E-ST-OVERLAP"),
        ({"a": one(), "b": one()}, {}, "E-ST-OVERLAP"),
        ({"a": one(), "b": one(offsets=(8, 16))}, {}, "E-ST-BOUNDS"),
        ({"a": one()}, {"data": b"\0" * 9}, "E-ST-OVERLAP"),
        ({"a": one(), "__metadata__": {"x": 1}}, {}, "E-ST-HEADER"),
    ],
)
def test_a_bent_header_is_refused(tmp_path: Path, header: Any, more: dict[str, Any], code: str) -> None:
    with pytest.raises(RefusedInput) as error:
        check_file(write(tmp_path / "x.safetensors", header, **more))
    assert error.value.code == code


def test_too_short_for_a_header(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234567")
    with pytest.raises(RefusedInput) as error:
        check_file(tmp_path / "x")
    assert error.value.code == "E-ST-SHORT"


def test_files_of_the_reference_writer_pass_and_it_reads_ours(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "a": torch.ones(3, 5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert {entry.name: entry.shape for entry in check_file(tmp_path / "theirs")} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    write_safetensors(tmp_path / "ours", tensors)
    check_file(tmp_path / "ours")
    read = load_file(tmp_path / "ours")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
