"""A pruned model that learns again keeps its zeros, measurably and provably."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ingot.core.rederive import derive
from ingot.core.stage import load_kind
from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.kit.prune import held
from stagekit import run_stage, stage_of
from tinymodels import chat_model, dataset, llama, state

SHORT = {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def pruned(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the attention at random places, 2:4 in the rest, in bfloat16."""
    tmp = tmp_path_factory.mktemp("pruned")
    model, _ = run_stage("convert", {"dtype": "bfloat16"}, {"model": chat_model(stories, tmp / "model")}, tmp, name="b")
    params = {"sparsity": {"attention": 0.5}, "pattern": {"feed_forward": "2:4"}}
    return run_stage("prune", params, {"model": model}, tmp, name="pruned")[0]


def shares(folder: Path) -> dict[str, float]:
    return {name: float((weight == 0).float().mean()) for name, weight in state(folder).items()}


def failure(kind: type[IngotError], params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> IngotError:
    with pytest.raises(kind) as caught:
        run_stage("recover", params, inputs, tmp_path, seed=1)
    return caught.value


@pytest.mark.parametrize(
    "more", [{"method": "masked"}, {"method": "masked", "train": "all"}, {"method": "lora", "rank": 4}]
)
def test_it_learns_and_every_zero_stays(pruned: Path, data: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    out, metrics = run_stage("recover", SHORT | more, {"model": pruned, "data": data}, tmp_path, seed=1)
    before, after = state(pruned), state(out)
    assert shares(out) == shares(pruned)
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    linear = {name for name in after if "_proj" in name}
    assert changed == (set(after) if "train" in more else linear)
    for name in linear:
        assert after[name].dtype == torch.bfloat16
        assert bool(after[name][before[name] == 0].eq(0).all())
        if "mlp" in name:
            assert int((after[name].reshape(-1, 4) != 0).sum(dim=1).max()) <= 2
    assert metrics["eval_loss_after"].value < metrics["eval_loss_before"].value
    assert metrics["eval_loss_change"].interval is not None
    assert metrics["eval_loss_change"].interval[1] < 0
    assert metrics["perplexity_after"].value == exp(metrics["eval_loss_after"].value)
    assert metrics["sparsity"].value == metrics["sparsity_before"].value == pytest.approx(0.5, abs=1e-3)
    assert metrics["crowded_blocks"].value == 0
    report = json.loads((out / "recover.json").read_text())
    told = {module["name"]: module for module in report["modules"]}
    assert report["method"] == more["method"]
    assert told["model.layers.0.mlp.up_proj"]["pattern"] == "2:4"
    assert all(module["zeros"] == module["zeros_before"] for module in told.values())
    assert not (out / "prune.json").exists()
    receipt = {"kind": "recover", "digest": "d", "inputs": {}, "metrics": {}}
    derived = derive(receipt, lambda _: out)
    assert {name: metrics[name].value for name in derived} == derived
    assert {"sparsity", "zeros", "crowded_blocks", "attention_sparsity"} <= derived.keys()


def test_the_loss_after_is_that_of_what_was_written(pruned: Path, data: Path, tmp_path: Path) -> None:
    """A second recovery begins where the first ended: nothing between training and writing changed the model."""
    inputs = {"model": pruned, "data": data}
    one, first = run_stage("recover", SHORT | {"method": "lora"}, inputs, tmp_path, seed=1, name="one")
    again = SHORT | {"steps": 1, "learning_rate": 1e-9}
    _, second = run_stage("recover", again, inputs | {"model": one}, tmp_path, seed=1, name="two")
    assert second["eval_loss_before"].value == pytest.approx(first["eval_loss_after"].value, abs=1e-6)
    assert second["sparsity"].value == first["sparsity"].value


def test_the_dense_model_can_teach_it(pruned: Path, data: Path, stories: Path, tmp_path: Path) -> None:
    teacher = chat_model(stories, tmp_path / "teacher")
    params = SHORT | {"distill": {"weight": 0.9, "dtype": "float32"}}
    inputs = {"model": pruned, "data": data, "teacher": teacher}
    out, metrics = run_stage("recover", params, inputs, tmp_path, seed=1)
    assert shares(out) == shares(pruned)
    assert metrics["teacher_kl_after"].value < metrics["teacher_kl_before"].value
    assert metrics["eval_loss_after"].value < metrics["eval_loss_before"].value
    alone = stage_of("recover", params).misfits(frozenset({"model", "data"}))
    assert [name for name, _ in alone] == ["distill"]


def test_it_is_the_same_every_time(pruned: Path, data: Path, tmp_path: Path) -> None:
    params, inputs = SHORT | {"steps": 2, "method": "lora"}, {"model": pruned, "data": data}
    one, two = (run_stage("recover", params, inputs, tmp_path, seed=1, name=name)[0] for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert stage_of("recover", params).reproduces() == "seeded"
    assert stage_of("recover", params | {"device": "auto"}).reproduces() == "device_dependent"


def no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.Held, "hold", lambda *_: None)
    monkeypatch.setattr(held.Held, "put_back", lambda *_: None)


def no_lora_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = held.MaskedLora.__init__

    def wrong(self: Any, linear: Any, zero: torch.Tensor, *rest: Any) -> None:
        right(self, linear, torch.zeros_like(zero), *rest)

    monkeypatch.setattr(held.MaskedLora, "__init__", wrong)


PLANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {"masked": no_mask, "lora": no_lora_mask}


@pytest.mark.parametrize("method", PLANTS)
def test_a_zero_that_comes_back_is_found_in_what_is_written(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    PLANTS[method](monkeypatch)
    error = failure(StageFailed, SHORT | {"steps": 2, "method": method}, {"model": pruned, "data": data}, tmp_path)
    assert error.code == "E-RECOVER-MASK"
    assert "were zero" in str(error)


def test_each_half_of_the_mask_is_enough_by_itself(
    pruned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are kept away, and zeros are put back: either way no zero is lost, with weight decay too."""
    params = SHORT | {"steps": 2, "weight_decay": 0.1}
    for number, name in enumerate(("hold", "put_back")):
        with monkeypatch.context() as patch:
            patch.setattr(held.Held, name, lambda *_: None)
            out, _ = run_stage("recover", params, {"model": pruned, "data": data}, tmp_path, seed=1, name=f"o{number}")
            assert shares(out) == shares(pruned)


def test_moments_of_held_weights_stay_zero() -> None:
    model = llama()
    name = "model.layers.0.mlp.up_proj"
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        weight[::2] = 0.0
    found = held.Held.of(model, [name, "model.layers.1.mlp.up_proj"])
    assert list(found.masks) == [name]
    found.hold(model)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
    moments = optimizer.state[weight]
    assert bool(moments["exp_avg"][::2].eq(0).all()) and bool(moments["exp_avg_sq"][::2].eq(0).all())
    assert bool(moments["exp_avg"][1::2].ne(0).any())
    assert bool(weight[::2].eq(0).all())


def test_patterns_are_known_from_the_zeros_alone() -> None:
    zero = torch.tensor([[True, True, True, False, True, False, True, True]])
    assert held.pattern_of(zero) == "1:4"
    zero[0, 0] = False
    assert held.pattern_of(zero) == "2:4"
    zero[0, 1] = False
    assert held.pattern_of(zero) == "4:8"
    zero[0, 2] = False
    assert held.pattern_of(zero) is None


def test_a_model_without_zeros_is_refused(data: Path, stories: Path, tmp_path: Path) -> None:
    dense = chat_model(stories, tmp_path / "dense")
    error = failure(RefusedInput, SHORT, {"model": dense, "data": data}, tmp_path)
    assert error.code == "E-RECOVER-DENSE"


def test_a_quantized_model_is_refused(pruned: Path, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "quantized"
    shutil.copytree(pruned, model)
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (model / "config.json").write_text(json.dumps(config))
    assert failure(RefusedInput, SHORT, {"model": model, "data": data}, tmp_path).code == "E-QUANTIZED"


def test_wrong_parameters_are_refused() -> None:
    for params in (
        {},
        {"steps": 1, "epochs": 1},
        {"steps": 1, "method": "lora", "train": "all"},
        {"steps": 1, "rank": 0},
    ):
        with pytest.raises(ValidationError):
            load_kind("recover").model_validate_json(json.dumps(params), strict=True)


def test_a_tied_model_stays_tied(data: Path, stories: Path, tmp_path: Path) -> None:
    model = chat_model(stories, tmp_path / "tied")
    out, _ = run_stage("prune", {"sparsity": {"embeddings": 0.3}}, {"model": model}, tmp_path, name="pruned")
    params = SHORT | {"steps": 2, "train": "all"}
    recovered, metrics = run_stage("recover", params, {"model": out, "data": data}, tmp_path, seed=1)
    assert "lm_head.weight" not in state(recovered)
    assert shares(recovered) == shares(out)
    assert metrics["embeddings_sparsity"].value == metrics["sparsity"].value
