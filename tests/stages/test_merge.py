from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.errors import RefusedInput
from ingot.kit import hf
from stagekit import digest_of, run_stage
from tinymodels import llama, logits, peft_adapter, save, state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning")

#: One rounding of the sum, against PEFT's two (the change, then the sum): 1.5 units in the last place.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 1.5 * 2**-7}


def merged_by_peft(wrapped: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = wrapped.merge_and_unload().state_dict()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_what_peft_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save(llama(), tmp_path / "base", dtype)
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter")
    out, metrics = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    ours, theirs, before = state(out), merged_by_peft(wrapped), state(base)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        largest = theirs[name].float().abs().max()
        assert (tensor.float() - theirs[name].float()).abs().max() <= BOUND[dtype] * largest, name
    changed = [name for name in ours if not ours[name].equal(before[name])]
    assert len(changed) == metrics["merged_tensors"].value == 14
    assert all("_proj" in name for name in changed)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_variants_of_lora_give_what_peft_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    base = save(llama(), tmp_path / "base")
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter", **options)
    out, _ = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    expected = logits(wrapped)
    assert (logits(hf.load_model(out)) - expected).abs().max() <= 1e-5
    assert (logits(hf.load_model(base)) - expected).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapted_tied_embedding_is_untied(tmp_path: Path, module: str) -> None:
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    wrapped = peft_adapter(hf.load_model(base), tmp_path / "adapter", target_modules=[module, "q_proj"])
    out, _ = run_stage("merge", {}, {"model": base, "adapter": tmp_path / "adapter"}, tmp_path)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert (logits(hf.load_model(out)) - logits(wrapped)).abs().max() <= 1e-5


def test_shards_give_the_same_weights_and_dtype_is_honoured(tmp_path: Path) -> None:
    whole = save(llama(), tmp_path / "whole")
    parts = save(llama(), tmp_path / "parts", max_shard_size="20KB")
    assert len(hf.tensor_files(parts)) > 2
    peft_adapter(hf.load_model(whole), tmp_path / "adapter")
    inputs = {"adapter": tmp_path / "adapter"}
    one, _ = run_stage("merge", {}, {"model": whole, **inputs}, tmp_path, name="one")
    two, _ = run_stage("merge", {}, {"model": parts, **inputs}, tmp_path, name="two")
    assert digest_of(one) == digest_of(two)
    half, metrics = run_stage("merge", {"dtype": "float16"}, {"model": whole, **inputs}, tmp_path, name="half")
    assert {tensor.dtype for tensor in state(half).values()} == {torch.float16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    assert metrics["weight_bytes"].value * 2 == sum(tensor.numel() * 4 for tensor in state(one).values())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = save(llama(), tmp_path / "base")
    peft_adapter(hf.load_model(base), tmp_path / "adapter")
    return base, tmp_path / "adapter"


def refusal(pair: tuple[Path, Path], tmp_path: Path) -> RefusedInput:
    with pytest.raises(RefusedInput) as caught:
        run_stage("merge", {}, {"model": pair[0], "adapter": pair[1]}, tmp_path)
    return caught.value


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"peft_type": "LOHA"}, {"init_lora_weights": "pissa_niter_4"}, {"alora_invocation_tokens": [1]}],
)
def test_an_adapter_that_is_no_sum_is_refused(pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    edit(pair[1], **changes)
    assert refusal(pair, tmp_path).code == "E-MERGE-METHOD"


def test_a_tensor_without_a_place_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_A" in name)
    other = name.replace("layers.1", "layers.7")
    moved = {n.replace("layers.1.mlp.up_proj", "layers.7.mlp.up_proj"): t for n, t in tensors.items()}
    save_file(moved, path)
    error = refusal(pair, tmp_path)
    assert error.code == "E-MERGE-UNMATCHED"
    assert "layers.7.mlp.up_proj" in str(error)
    save_file({**tensors, other.replace("lora_A", "lora_C"): tensors[name].clone()}, path)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out-scratch")
    assert refusal(pair, tmp_path).code == "E-MERGE-METHOD"


def test_another_models_adapter_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(llama(hidden_size=64, head_dim=16), tmp_path / "other")
    assert refusal((other, pair[1]), tmp_path).code == "E-MERGE-SHAPE"


def test_a_rank_that_is_not_that_of_the_matrices_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1], r=8)
    assert refusal(pair, tmp_path).code == "E-MERGE-SHAPE"


def test_a_folder_that_is_no_adapter_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert refusal((pair[0], pair[0]), tmp_path).code == "E-NOT-ADAPTER"


def test_a_quantized_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantized, _ = run_stage("quantize", {}, {"model": pair[0]}, tmp_path, name="quantized")
    assert refusal((quantized, pair[1]), tmp_path).code == "E-QUANTIZED"
