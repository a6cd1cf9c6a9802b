"""Hugging Face folders are read with suspicion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ingot.core.sweep import Forbidden, sweep
from ingot.errors import RefusedInput
from ingot.kit import hf

INDEX = "model.safetensors.index.json"


@pytest.mark.fault("M9", "an index that names files elsewhere")
@pytest.mark.parametrize("name", ["../outside.safetensors", "absent.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_names_files_of_the_folder_only(tmp_path: Path, name: str) -> None:
    hf.write_safetensors(tmp_path / "outside.safetensors", {"a": torch.ones(1)})
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(RefusedInput) as error:
        hf.tensor_files(folder)
    assert error.value.code == "E-ST-INDEX"


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        hf.write_safetensors(tmp_path / f"{name}.safetensors", {"same": torch.ones(1)})
    with pytest.raises(RefusedInput) as error:
        hf.tensor_names(tmp_path)
    assert error.value.code == "E-ST-INDEX"


def test_code_in_the_tokenizer_config_is_refused(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((stories / "config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.T", null]}}')
    with pytest.raises(RefusedInput) as error:
        hf.load_tokenizer(tmp_path)
    assert error.value.code == "E-CONFIG-CODE"


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', "nonsense", "[" * 100_000])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RefusedInput) as error:
        hf.read_config(tmp_path)
    assert error.value.code == ("E-JSON-LIMIT" if len(text) > 1000 else "E-NOT-HF")


def test_a_damaged_file_is_refused_before_a_library_reads_it(stories: Path, tmp_path: Path) -> None:
    for path in stories.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RefusedInput) as error:
        hf.load_model(tmp_path)
    assert error.value.code == "E-ST-BOUNDS"


@pytest.mark.fault("S3", "paths of its maker in the configs of a model")
def test_side_files_lose_the_paths_of_their_maker(stories: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "m", tmp_path / "out"
    shutil.copytree(stories, source)
    out.mkdir()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "name_or_path": "/home/tom/llama"}))
    hf.copy_side_files(source, out, config={**hf.read_config(source), "dir": "/Users/tom/llama"})
    sweep(out, "merge", Forbidden("/data/s/1", "/data/p", "/data/h"))
    assert json.loads((out / "tokenizer_config.json").read_text()) == config
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_side_files_carry_no_path_and_no_weights(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hf.copy_side_files(stories, out, config={**hf.read_config(stories), "_name_or_path": "/home/someone/model"})
    names = {path.name for path in out.iterdir()}
    assert "tokenizer.json" in names
    assert not {name for name in names if name.endswith((".safetensors", ".gguf"))}
    assert "_name_or_path" not in json.loads((out / "config.json").read_text())
