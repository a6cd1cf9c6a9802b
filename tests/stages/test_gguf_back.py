"""Every architecture through the stages: Hugging Face → GGUF → Hugging Face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import make_tokenizer

from archmodels import CASES, make_model
from ingot.kit import hf
from ingot.kit.llama_cpp import open_model
from stagekit import run_stage


def make(name: str, folder: Path) -> Path:
    """A model with a tokenizer that every architecture takes: three tokens less than the embedding has rows."""
    return make_model(name, folder, make_tokenizer(folder) + 3)


def logits(folder: Path, ids: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.no_grad():
        return np.asarray(hf.load_model(folder, "float32")(input_ids=ids).logits[0].numpy())


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_what_is_exported_comes_back(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path / "hf")
    gguf, _ = run_stage("gguf", {"type": "F32"}, {"model": folder}, tmp_path, name="gguf")
    back, metrics = run_stage("convert", {"dtype": "float32"}, {"model": gguf}, tmp_path, name="back")
    original, found = dict(hf.iter_tensors(folder)), dict(hf.iter_tensors(back))
    assert found.keys() == original.keys()
    for key, tensor in original.items():
        exact = not (name.startswith("gemma") and key.endswith("norm.weight"))
        assert torch.equal(found[key], tensor) if exact else (found[key] - tensor).abs().max() <= 2**-24, key
    assert metrics["parameters"].value == sum(tensor.numel() for tensor in original.values())
    assert hf.load_tokenizer(back)("the cat 12")["input_ids"] == hf.load_tokenizer(folder)("the cat 12")["input_ids"]


@pytest.mark.parametrize(
    "name", ["phi3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt2", "smollm3"))]
)
def test_a_quantized_file_comes_back_as_llama_cpp_reads_it(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path / "hf")
    gguf, _ = run_stage("gguf", {"type": "Q8_0"}, {"model": folder}, tmp_path, name="gguf")
    back, _ = run_stage("convert", {"dtype": "float32"}, {"model": gguf}, tmp_path, name="back")
    ids = torch.randint(3, 300, (1, CASES[name].positions), generator=torch.Generator().manual_seed(1))
    with open_model(gguf / "model.gguf", context=64, threads=2) as model:
        found = model.logits(ids[0].tolist())
    wanted = logits(back, ids)
    # llama.cpp rounds to eight bits what it multiplies with, too; Gemma 3 has seven layers of it
    assert np.linalg.norm(found - wanted) < 1e-1 * np.linalg.norm(wanted)
    assert np.abs(wanted - logits(folder, ids)).max() > 0
