"""How far apart two files are: weights by values, JSON by numbers, else bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ingot.kit.apart import apart


def test_safetensors(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    tensors = {"a": torch.tensor([3.0, 4.0], dtype=torch.bfloat16), "b": torch.zeros(2), "c": torch.ones(1)}
    save_file(tensors, one)
    save_file({**tensors, "a": torch.tensor([3.0, 4.5], dtype=torch.bfloat16)}, other)
    found = apart(one, other)
    assert (found["tensors"], found["of"], found["largest"], found["where"]) == (1, 3, 0.5, "a")
    assert found["relative"] == pytest.approx(0.5 / 26**0.5)
    save_file({"a": tensors["a"], "b": torch.zeros(3)}, other)
    found = apart(one, other)
    assert (found["tensors"], found["of"], found["largest"]) == (2, 3, None)


def test_what_is_not_a_number_differs(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.tensor([1.0])}, one)
    save_file({"a": torch.tensor([float("nan")])}, other)
    assert apart(one, other)["tensors"] == 1


def test_gguf(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    paths = []
    for name, last in (("one", 2.0), ("other", 2.25)):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("a", np.array([1.0, last], np.float32))
        writer.add_tensor("b", np.ones((1, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    found = apart(*paths)
    assert (found["tensors"], found["of"], found["largest"], found["where"]) == (1, 2, 0.25, "a")


def test_json_and_lines(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps({"a": [1, 2.0], "b": "x", "c": True}))
    other.write_text(json.dumps({"a": [1, 3.0], "b": "x", "c": True}))
    assert apart(one, other) == {
        "what": "values",
        "values": 1,
        "of": 4,
        "relative": pytest.approx(1 / 3),
        "where": "/a/1",
    }
    other.write_text(json.dumps({"a": [1, 2.0], "b": "y", "c": 1}))
    found = apart(one, other)
    assert (found["values"], found["relative"]) == (2, None)
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"n": 1}\n{"n": 2}\n')
    other.write_text('{"n": 1}\n')
    assert apart(one, other)["values"] == 1


def test_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_bytes(b"not json")
    other.write_bytes(b"nor jsonx")
    assert apart(one, other) == {"what": "bytes", "bytes": 2, "of": 9}


@pytest.mark.parametrize("name", ["one.safetensors", "one.gguf"])
def test_what_is_no_weights_is_compared_by_its_bytes(tmp_path: Path, name: str) -> None:
    one, other = tmp_path / name, tmp_path / f"other-{name}"
    one.write_bytes(b"broken")
    other.write_bytes(b"brakes")
    assert apart(one, other) == {"what": "bytes", "bytes": 2, "of": 6}


def test_equal_numbers_of_two_types_differ_by_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('{"a": 0, "b": 2}')
    other.write_text('{"a": 0.0, "b": 2}')
    assert apart(one, other) == {"what": "values", "values": 1, "of": 2, "relative": 0.0, "where": "/a"}
