from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from ingot.core.stage import Least
from ingot.errors import RefusedInput
from ingot.kit import hf
from stagekit import digest_of, run_stage, stage_of
from tinymodels import chat_model, dataset, state

FAST: dict[str, Any] = {
    "steps": 6, "batch_size": 4, "max_length": 128, "learning_rate": 2e-3, "dtype": "float32", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("inputs")
    return {"model": chat_model(stories, tmp / "model"), "data": dataset(tmp / "data")}


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return run_stage("full", FAST, inputs, tmp_path_factory.mktemp("trained"), seed=7, threads=1)


def test_the_whole_model_learns_and_is_written(
    trained: tuple[Path, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    out, metrics = trained
    before, after = state(inputs["model"]), state(out)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in before.items() if name != "lm_head.weight"
    }
    assert all(not torch.equal(before[name], tensor) for name, tensor in after.items())
    assert metrics["eval_loss_change"].value < -0.3
    count = sum(tensor.numel() for tensor in after.values())
    assert metrics["parameters"].value == metrics["trainable_parameters"].value == count
    assert metrics["weight_bytes"].value == (out / "model.safetensors").stat().st_size
    assert json.loads((out / "config.json").read_text()) == hf.read_config(inputs["model"])
    assert (out / "tokenizer.json").read_bytes() == (inputs["model"] / "tokenizer.json").read_bytes()
    again, _ = run_stage("full", FAST, inputs, tmp_path, seed=7, threads=1)
    assert digest_of(again) == digest_of(out)


def test_what_is_not_named_stays_bit_for_bit(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {**FAST, "steps": 1, "eval_documents": 0, "train": ["layers.1.self_attn", "mlp.*_proj"]}
    out, metrics = run_stage("full", params, inputs, tmp_path, seed=7, threads=1)
    before, after = state(inputs["model"]), state(out)
    changed = {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert changed == {name for name in after if ".mlp." in name or "layers.1.self_attn." in name}
    assert metrics["trainable_parameters"].value == sum(after[name].numel() for name in changed)
    assert metrics["parameters"].value == sum(tensor.numel() for tensor in after.values())


def test_either_name_of_a_tied_weight_will_do(inputs: dict[str, Path], tmp_path: Path) -> None:
    changed = []
    for name in ("lm_head", "embed_tokens"):
        params = {**FAST, "steps": 1, "eval_documents": 0, "train": [name]}
        out, _ = run_stage("full", params, inputs, tmp_path, seed=7, threads=1, name=name)
        before, after = state(inputs["model"]), state(out)
        changed.append([name for name, tensor in after.items() if not torch.equal(before[name], tensor)])
    assert changed == [["model.embed_tokens.weight"]] * 2


def test_weights_keep_their_dtypes_or_take_that_of_the_spec(inputs: dict[str, Path], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(inputs["model"], mixed)
    tensors = load_file(mixed / "model.safetensors")
    save_file(
        {name: tensor.bfloat16() if tensor.dim() > 1 else tensor.float() for name, tensor in tensors.items()},
        mixed / "model.safetensors",
    )
    given = {**inputs, "model": mixed}
    params = {**FAST, "steps": 1, "eval_documents": 0, "train": ["norm"]}
    kept = state(run_stage("full", params, given, tmp_path, seed=7, threads=1)[0])
    assert {tensor.dtype for tensor in kept.values() if tensor.dim() > 1} == {torch.bfloat16}
    assert {tensor.dtype for tensor in kept.values() if tensor.dim() == 1} == {torch.float32}
    frozen = state(mixed)
    for name, tensor in kept.items():
        assert torch.equal(tensor, frozen[name]) is (tensor.dim() > 1 or name.endswith("layernorm.weight")), name
    params = {**params, "weights": "float16"}
    out, _ = run_stage("full", params, given, tmp_path, seed=7, threads=1, name="half")
    assert {tensor.dtype for tensor in state(out).values()} == {torch.float16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_it_learns_from_a_teacher(trained: tuple[Path, Any], inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {**FAST, "distill": {"weight": 1.0, "temperature": 1.0, "dtype": "float32", "hidden_weight": 0.5}}
    _, metrics = run_stage("full", params, {**inputs, "teacher": trained[0]}, tmp_path, seed=7, threads=1)
    assert metrics["teacher_kl_change"].interval is not None
    assert metrics["teacher_kl_change"].interval[1] < 0
    assert metrics["trainable_parameters"].value == metrics["parameters"].value, "the widths are equal: no projection"


def refusal(params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> RefusedInput:
    with pytest.raises(RefusedInput) as caught:
        run_stage("full", {**FAST, **params}, inputs, tmp_path, seed=7, threads=1)
    assert list((tmp_path / "out").iterdir()) == []
    return caught.value


def test_a_name_that_no_weight_has_is_refused_with_those_there_are(inputs: dict[str, Path], tmp_path: Path) -> None:
    error = refusal({"train": ["mlp", "attention"]}, inputs, tmp_path)
    assert error.code == "E-FULL-MODULES"
    assert "'attention'" in error.what
    assert "self_attn" in error.facts[0]


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_quantized_model_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    quantized, _ = run_stage("quantize", {}, {"model": inputs["model"]}, tmp_path, name="quantized")
    assert refusal({}, {**inputs, "model": quantized}, tmp_path).code == "E-QUANTIZED"


def test_a_model_whose_weights_have_other_names_in_memory_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    shutil.copytree(inputs["model"], strange)
    tensors = load_file(strange / "model.safetensors")
    save_file({**tensors, "model.layers.0.mlp.expert.weight": torch.zeros(2)}, strange / "model.safetensors")
    error = refusal({}, {**inputs, "model": strange}, tmp_path)
    assert (error.code, error.facts) == ("E-MODEL-ARCH", ("model.layers.0.mlp.expert.weight: only in the folder",))


def test_no_data_and_an_absent_gpu_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for split in ("train", "eval"):
        (empty / f"{split}.jsonl").write_text("")
    assert refusal({}, {**inputs, "data": empty}, tmp_path).code == "E-DATASET-EMPTY"
    if not torch.cuda.is_available():
        with pytest.raises(RefusedInput) as caught:
            run_stage("full", {**FAST, "device": "cuda"}, inputs, tmp_path, seed=7, name="cuda")
        assert caught.value.code == "E-DEVICE"


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"train": []}, "train is empty"),
        ({"train": [""]}, "empty name"),
        ({"epochs": 1}, "exactly one of"),
        ({"weights": "int8"}, "weights"),
    ],
)
def test_what_cannot_be_is_refused_with_the_spec(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        stage_of("full", {**FAST, **params})


def test_what_a_training_holds_is_planned_by_arithmetic() -> None:
    found = {"model": Least(bytes=2_000_000, weights=1_000_000), "teacher": Least(bytes=1, weights=300_000)}
    stage = stage_of("full", FAST)
    assert stage.least_memory(found, "cpu") == 16 * 999_000 + 2 * 299_700
    assert stage.least_output(found) == Least(2 * 999_000, 999_000)
    part = stage_of("full", {**FAST, "train": ["norm"], "weights": "float32"})
    assert part.least_memory(found, "cpu") == 4 * 999_000 + 2 * 299_700
    assert part.least_output(found) == Least(4 * 999_000, 999_000)
