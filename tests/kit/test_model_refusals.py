"""Model folders that cannot be used: what is missing, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ingot.errors import RefusedInput
from ingot.kit import hf, layers
from stagekit import run_stage
from tinymodels import llama, save


def refusal(action: object, *arguments: object) -> RefusedInput:
    assert callable(action)
    with pytest.raises(RefusedInput) as caught:
        action(*arguments)
    return caught.value


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model without a tokenizer."""
    folder = save(llama(), tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return save(GPT2LMHeadModel(config), tmp_path / "gpt2")


def test_a_folder_without_a_tokenizer_says_so(bare: Path, tmp_path: Path) -> None:
    error = refusal(run_stage, "gguf", {"type": "F16"}, {"model": bare}, tmp_path)
    assert (error.code, error.what) == ("E-TOKENIZER", "the model's folder holds no tokenizer")
    assert "tokenizer.json" in error.facts[0]
    assert error.facts[1] == "files: " + ", ".join(sorted(path.name for path in bare.iterdir()))


def test_gpt2_without_a_tokenizer_is_not_given_an_empty_one(gpt2: Path) -> None:
    assert refusal(hf.load_tokenizer, gpt2).code == "E-TOKENIZER"


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": 1}'])
def test_a_tokenizer_that_cannot_be_read_says_so(bare: Path, text: str) -> None:
    (bare / "tokenizer.json").write_text(text)
    error = refusal(hf.load_tokenizer, bare)
    assert (error.code, error.what) == ("E-TOKENIZER", "the model's tokenizer cannot be read")


@pytest.mark.parametrize("kind", ["zork", "vit", None])
def test_an_unknown_architecture_is_one_sentence(bare: Path, kind: str | None) -> None:
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    for action in (hf.load_model, layers.skeleton):
        error = refusal(action, bare)
        assert error.code == "E-MODEL-ARCH"
        assert (f"'{kind}'" if kind else "no model_type") in error.what
        assert ", llama, " in error.facts[0]
        assert error.hint


def test_a_misspelt_architecture_gets_its_name(bare: Path) -> None:
    (bare / "config.json").write_text(json.dumps({"model_type": "lama"}))
    assert refusal(layers.skeleton, bare).hint == "did you mean 'llama'?"


@pytest.mark.parametrize(("kind", "params"), [("prune", {"sparsity": 0.5}), ("quantize", {})])
def test_a_model_without_linear_layers_is_named(
    gpt2: Path, tmp_path: Path, kind: str, params: dict[str, float]
) -> None:
    error = refusal(run_stage, kind, params, {"model": gpt2}, tmp_path)
    assert error.code == "E-MODEL-ARCH"
    assert error.what.startswith("the architecture gpt2 is not supported here")
