from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ingot.core.stage import load_kind
from ingot.errors import IngotError, RefusedInput, StageFailed
from stagekit import digest_of, run_stage
from tinymodels import chat_model, dataset

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::DeprecationWarning")

FAST: dict[str, Any] = {"steps": 16, "rank": 8, "learning_rate": 1e-2, "dtype": "float32", "eval_every": 8}


@pytest.fixture(scope="module")
def inputs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("inputs")
    return {"model": chat_model(stories, tmp / "model"), "data": dataset(tmp / "data")}


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return run_stage("adapter", FAST, inputs, tmp_path_factory.mktemp("trained"), seed=7, threads=1)


def failure(kind: type[IngotError], params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> IngotError:
    with pytest.raises(kind) as caught:
        run_stage("adapter", {**FAST, **params}, inputs, tmp_path, seed=7, threads=1)
    return caught.value


def test_it_learns_and_says_how_much(trained: tuple[Path, Any]) -> None:
    out, metrics = trained
    curves = json.loads((out / "training.json").read_text())
    assert [step["step"] for step in curves["train"]] == list(range(1, 17))
    assert [point["step"] for point in curves["eval"]] == [0, 8, 16]
    assert curves["packed"] is True
    assert metrics["eval_loss_before"].value == curves["eval"][0]["loss"]
    assert metrics["eval_loss_after"].value == curves["eval"][-1]["loss"]
    change = metrics["eval_loss_change"]
    assert change.value == pytest.approx(metrics["eval_loss_after"].value - metrics["eval_loss_before"].value)
    assert change.value < -0.5
    assert change.interval is not None
    assert change.interval[0] <= change.value <= change.interval[1] < 0
    assert metrics["eval_loss_after"].n == 12
    assert metrics["train_loss_last"].value < metrics["train_loss_first"].value
    assert metrics["tokens"].value == sum(step["tokens"] for step in curves["train"])


@pytest.mark.parametrize(("steps", "each"), [(1, 1), (5, 2)])
def test_the_start_and_the_end_of_a_short_training_share_no_step(
    inputs: dict[str, Path], tmp_path: Path, steps: int, each: int
) -> None:
    params = {**FAST, "steps": steps, "eval_documents": 0, "eval_every": 0}
    out, metrics = run_stage("adapter", params, inputs, tmp_path, seed=1)
    curve = json.loads((out / "training.json").read_text())["train"]
    for name, part in (("first", curve[:each]), ("last", curve[-each:])):
        tokens = sum(step["scored_tokens"] for step in part)
        mean = sum(step["loss"] * step["scored_tokens"] for step in part) / tokens
        assert metrics[f"train_loss_{name}"].value == pytest.approx(mean)
        assert metrics[f"train_loss_{name}"].n == tokens
        assert metrics[f"train_loss_{name}"].method == f"mean over the {name} {each} steps"


def test_the_measured_loss_is_what_peft_and_transformers_compute(
    trained: tuple[Path, Any], inputs: dict[str, Path]
) -> None:
    import torch
    from peft import PeftModel

    from ingot.kit import chat, hf

    model = PeftModel.from_pretrained(hf.load_model(inputs["model"], "float32"), trained[0]).eval()
    tokenizer = hf.load_tokenizer(inputs["model"])
    total = count = 0.0
    for row in chat.read_rows(inputs["data"], "eval"):
        example = chat.encode(tokenizer, row, max_length=512)
        labels = [-100] * example.labels_from + example.ids[example.labels_from :]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels])).loss
        total += float(loss) * example.scored
        count += example.scored
    assert total / count == pytest.approx(trained[1]["eval_loss_after"].value, abs=1e-4)


def test_what_is_written_is_clean(trained: tuple[Path, Any], inputs: dict[str, Path]) -> None:
    out, metrics = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "ingot_adapter.json", "loss.svg",
        "training.json",
    ]  # fmt: skip
    text = (out / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert set(config["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "up_proj",
        "gate_proj",
        "down_proj",
    }
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    record = {"format": 1, "base_digest": digest_of(inputs["model"]), "quantization": None}
    assert json.loads((out / "ingot_adapter.json").read_text()) == record
    for path in out.iterdir():
        data = path.read_bytes()
        assert str(inputs["model"]).encode() not in data
        assert str(out.parent).encode() not in data
    assert "seconds" not in (out / "training.json").read_text()
    assert metrics["trainable_parameters"].value * 4 < (out / "adapter_model.safetensors").stat().st_size


def test_the_seed_and_nothing_else_decides(trained: tuple[Path, Any], inputs: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys, json; from pathlib import Path; from stagekit import run_stage, digest_of\n"
        "params, inputs, tmp = json.loads(sys.argv[1])\n"
        "folders = {role: Path(path) for role, path in inputs.items()}\n"
        "print(digest_of(run_stage('adapter', params, folders, Path(tmp), seed=7, threads=1)[0]))"
    )
    job = [FAST, {role: str(path) for role, path in inputs.items()}, str(tmp_path / "again")]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, json.dumps(job)]
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert again == digest_of(trained[0])
    other, _ = run_stage("adapter", FAST, inputs, tmp_path, seed=8, threads=1)
    assert digest_of(other) != again


def test_the_order_of_the_rows_is_that_of_their_content(
    trained: tuple[Path, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "eval"):
        lines = (inputs["data"] / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(reversed(lines)))
    out, _ = run_stage("adapter", FAST, {**inputs, "data": data}, tmp_path, seed=7, threads=1)
    assert digest_of(out) == digest_of(trained[0])


def test_epochs_bfloat16_and_named_modules(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {"epochs": 1, "batch_size": 8, "rank": 2, "target_modules": ["self_attn.q_proj", "v_proj"], "dropout": 0.1}
    out, metrics = run_stage("adapter", {**params, "eval_documents": 0}, inputs, tmp_path, seed=7, threads=1)
    assert metrics["steps"].value == 5
    assert "eval_loss_before" not in metrics
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert metrics["trainable_parameters"].value == 5 * 2 * ((64 + 64) + (64 + 32))


@pytest.mark.parametrize(
    ("rate", "steps", "fact"),
    [(1e30, 3, "loss nan"), (1.0, 5, "uniform guess"), (0.3, 20, "at step 9"), (0.3, 5, "held-out loss")],
)
def test_divergence_stops_with_a_reason(
    inputs: dict[str, Path], tmp_path: Path, rate: float, steps: int, fact: str
) -> None:
    params = {"learning_rate": rate, "warmup": 0.0, "steps": steps, "eval_every": 0}
    error = failure(StageFailed, params, inputs, tmp_path)
    assert fact in str(error)
    assert error.code == "E-TRAIN-DIVERGED"
    assert "learning_rate" in str(error.hint)


def test_a_module_that_is_not_there_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    error = failure(RefusedInput, {"target_modules": ["q_proj", "c_attn"]}, inputs, tmp_path)
    assert error.code == "E-ADAPTER-MODULES"
    assert "c_attn" in error.what
    assert "q_proj" not in error.what
    assert "gate_proj" in str(error)


def test_nothing_to_learn_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    empty = dataset(tmp_path / "empty", train=0)
    assert failure(RefusedInput, {}, {**inputs, "data": empty}, tmp_path / "a").code == "E-DATASET-EMPTY"
    assert failure(RefusedInput, {"max_length": 8}, inputs, tmp_path / "b").code == "E-DATASET-LENGTH"


@pytest.mark.parametrize(
    "params",
    [{}, {"steps": 3, "epochs": 1}, {"steps": 0}, {"steps": 1, "rank": 0}, {"steps": 1, "dropout": 1.0},
     {"steps": 1, "target_modules": []}, {"steps": 1, "alpha": 0}],
)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("adapter").model_validate_json(json.dumps(params), strict=True)


def test_spelling_out_the_default_alpha_changes_nothing() -> None:
    def resolved(**params: Any) -> dict[str, Any]:
        return load_kind("adapter").model_validate_json(json.dumps({"steps": 1, **params}), strict=True).model_dump()

    assert resolved(rank=8) == resolved(rank=8, alpha=16)
    assert resolved(rank=8)["alpha"] == 16
    assert math.isclose(resolved(rank=8, alpha=4.5)["alpha"], 4.5)
