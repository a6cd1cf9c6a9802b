"""Hugging Face folders are read with suspicion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

import tinymodels
from ingot.core.sweep import Forbidden, sweep
from ingot.errors import RefusedInput
from ingot.kit import hf
from stagekit import run_stage

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


@pytest.mark.parametrize("scheme", ["W8A16", "NF4"])
def test_a_quantized_checkpoint_is_a_plain_model_that_can_be_moved(scheme: str, tmp_path: Path) -> None:
    """On a machine with a GPU a library would place it there, or wrap modules so that they stay where they are."""
    model = tinymodels.save(tinymodels.llama(hidden_size=64, intermediate_size=64, head_dim=16), tmp_path / "model")
    out, _ = run_stage("quantize", {"scheme": scheme}, {"model": model}, tmp_path)
    loaded = hf.load_model(out, "float32")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert all(type(module._parameters) is dict for module in loaded.modules())
    moved = loaded.to("meta")
    logits = moved(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta")).logits
    assert logits.device.type == "meta"


def test_a_model_in_four_bits_is_read_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes takes a GPU wherever it is not told where to."""
    model = tinymodels.save(tinymodels.llama(hidden_size=64, intermediate_size=64, head_dim=16), tmp_path / "model")
    out, _ = run_stage("quantize", {"scheme": "NF4"}, {"model": model}, tmp_path)
    asked: list[Any] = []
    plain = Bnb4BitHfQuantizer.update_device_map

    def told(self: Any, device_map: Any) -> Any:
        asked.append(device_map)
        return plain(self, device_map)

    monkeypatch.setattr(Bnb4BitHfQuantizer, "update_device_map", told)
    hf.load_model(out)
    assert asked == [{"": "cpu"}]
