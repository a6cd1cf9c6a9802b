"""``contract.json`` and the tokenizer beside an export: what is written is read back, and what was changed is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import make_llama

from ingot.errors import RefusedInput
from ingot.kit.contract import Contract, Tensor, read_contract, ship_tokenizer, write_contract
from ingot.kit.hf import load_lone_tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny") / "hf")


@pytest.fixture
def export(model: Path, tmp_path: Path) -> Path:
    write_contract(tmp_path, contract(ship_tokenizer(model, tmp_path)))
    return tmp_path


def contract(tokenizer: Any) -> Contract:
    inputs = (Tensor("input_ids", "int64", ("batch", "sequence")),)
    outputs = (Tensor("logits", "float32", ("batch", "sequence", 305)),)
    return Contract(
        "onnx", "LlamaForCausalLM", 2, 1000, "int8", "float32", inputs, outputs, tokenizer, {"context": 256}
    )


def test_it_says_what_was_written(model: Path, export: Path) -> None:
    found = read_contract(export)
    assert found == contract(found.tokenizer)
    assert found.context == 256
    assert found.tokenizer.files == (
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"
    )  # fmt: skip
    assert found.tokenizer.end_tokens == (2,)
    assert found.tokenizer.template == (model / "chat_template.jinja").read_text()
    text = "the cat sat on <|im_end|> 1234"
    assert load_lone_tokenizer(export)(text)["input_ids"] == load_tokenizer(model)(text)["input_ids"]
    assert not (export / "config.json").exists()


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / "contract.json").read_text())
    edit(value)
    (folder / "contract.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        (lambda folder: (folder / "contract.json").unlink(), "holds no contract.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "missing: tokenizer.json"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "digest of its files differs"),
        (lambda folder: change(folder, lambda it: it.update(format=2)), "format is not 1"),
        (lambda folder: change(folder, lambda it: it.pop("inputs")), "not of the form"),
        (lambda folder: change(folder, lambda it: it.update(more=1)), "not of the form"),
        (lambda folder: change(folder, lambda it: it["limits"].update(context="long")), "a number is none"),
        (lambda folder: change(folder, lambda it: it.update(container="tflite")), "the container"),
        (lambda folder: change(folder, lambda it: it["tokenizer"].update(files=["../x"])), "not in its folder"),
        (lambda folder: change(folder, lambda it: it["inputs"][0].update(shape=[None])), "the shape of 'input_ids'"),
        (lambda folder: (folder / "contract.json").write_bytes(b" " * (17 << 20)), "more than any"),
    ],
)
def test_a_changed_one_is_refused(export: Path, plant: Callable[[Path], object], what: str) -> None:
    plant(export)
    with pytest.raises(RefusedInput) as caught:
        read_contract(export)
    assert caught.value.code == "E-CONTRACT"
    assert what in str(caught.value)
