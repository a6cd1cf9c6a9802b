"""What each module loses, by name; what SparseGPT makes of it; layers that go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ingot.core.stage import load_kind
from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.kit import hf, oneshot
from ingot.kit.prune import depth, sparsegpt
from ingot.kit.prune.goals import Goal, Prunable, resolve
from stagekit import run_stage, stage_of
from tinymodels import chat_model, dataset, llama, logits, save, state

LINEAR = tuple(
    f"model.layers.{layer}.{part}"
    for layer in range(2)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)
MODEL = Prunable(LINEAR, ("model.embed_tokens", "lm_head"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama(), tmp_path_factory.mktemp("plain") / "base")


@pytest.fixture(scope="module")
def calibrated(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("calibrated")
    return {"model": chat_model(stories, tmp / "model"), "calibration": dataset(tmp / "data", train=12)}


def failure(kind: type[IngotError], params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> IngotError:
    with pytest.raises(kind) as caught:
        run_stage("prune", params, inputs, tmp_path)
    if kind is RefusedInput:
        assert list((tmp_path / "out").iterdir()) == []
    return caught.value


def shares(folder: Path) -> dict[str, float]:
    return {name: float((weight == 0).float().mean()) for name, weight in state(folder).items() if weight.dim() == 2}


def test_the_most_specific_name_decides_in_any_order() -> None:
    wanted = {
        "all-linear": Goal(share=0.1),
        "feed_forward": Goal(share=0.2),
        "model.layers.1": Goal(share=0.3),
        "model.layers.1.mlp.up_proj": Goal(keep=2, block=4),
        "o_proj": Goal(share=0.25),
        "model.layers.0.self_attn.q*": Goal(share=0.0),
    }
    expected = {
        "model.layers.0.self_attn.o_proj": Goal(share=0.25),
        "model.layers.0.mlp.up_proj": Goal(share=0.2),
        "model.layers.0.mlp.down_proj": Goal(share=0.2),
        "model.layers.1.self_attn.q_proj": Goal(share=0.3),
        "model.layers.1.self_attn.o_proj": Goal(share=0.3),
        "model.layers.1.mlp.up_proj": Goal(keep=2, block=4),
        "model.layers.1.mlp.down_proj": Goal(share=0.3),
    }
    assert resolve(MODEL, wanted) == expected
    assert resolve(MODEL, dict(reversed(wanted.items()))) == expected
    assert list(resolve(MODEL, wanted)) == list(expected)
    assert list(resolve(MODEL, {"embeddings": Goal(share=0.5)})) == ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"up": Goal(share=0.5)}, "up_proj"),
        ({"mlp": Goal(share=0.5), "up_proj": Goal(share=0.4)}, "named twice"),
        ({"attention": Goal(share=0.0)}, "no module"),
        ({"layers.*.moe": Goal(share=0.5), "attention": Goal(share=0.5)}, "groups: all-linear, attention"),
    ],
)
def test_names_that_mean_nothing_or_two_things_are_refused(wanted: dict[str, Goal], said: str) -> None:
    with pytest.raises(RefusedInput) as caught:
        resolve(MODEL, wanted)
    assert caught.value.code == "E-PRUNE-MODULES"
    assert said in str(caught.value)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_method_takes_from_each_module_what_its_name_asks(
    calibrated: dict[str, Path], tmp_path: Path, method: str
) -> None:
    params: dict[str, Any] = {
        "method": method, "documents": 4, "block_size": 32, "device": "cpu",
        "sparsity": {"attention": 0.6, "down_proj": 0.75, "model.layers.4.self_attn.v_proj": 0.0},
        "pattern": {"gate_proj": "2:4", "up_proj": "4:8"},
    }  # fmt: skip
    out, metrics = run_stage("prune", params, calibrated, tmp_path)
    before = state(calibrated["model"])
    for name, share in shares(out).items():
        if "4.self_attn.v_proj" in name or "embed" in name:
            assert state(out)[name].equal(before[name])
        elif "self_attn" in name:
            assert share == pytest.approx(0.6, abs=0.01)
        elif "down_proj" in name:
            assert share == pytest.approx(0.75, abs=0.01)
        else:
            keep, block = (2, 4) if "gate" in name else (4, 8)
            assert int((state(out)[name].reshape(-1, block) != 0).sum(dim=1).max()) <= keep
            assert share == 0.5
    report = json.loads((out / "prune.json").read_text())
    told = {module["name"]: module for module in report["modules"]}
    assert report["method"] == method
    assert told["model.layers.0.mlp.up_proj"]["pattern"] == "4:8"
    assert told["model.layers.0.self_attn.q_proj"]["sparsity"] == 0.6
    assert "model.layers.4.self_attn.v_proj" not in told
    for module in told.values():
        assert module["zeros"] == round(shares(out)[module["name"] + ".weight"] * module["parameters"])
    assert metrics["crowded_blocks"].value == 0
    attention = [module for module in told.values() if module["group"] == "attention"]
    expected = sum(module["zeros"] for module in attention) / sum(module["parameters"] for module in attention)
    assert metrics["attention_sparsity"].value == expected


def test_sparsegpt_keeps_more_of_what_flows_out_than_any_mask_alone(
    calibrated: dict[str, Path], tmp_path: Path
) -> None:
    """Measured on what it minimises: the output of each first layer's module, over the calibration inputs."""
    data = json.loads((calibrated["calibration"] / "train.jsonl").read_text().splitlines()[0])
    ids = torch.tensor([hf.load_tokenizer(calibrated["model"]).encode(data["messages"][1]["content"])])
    name = "model.layers.0.mlp.down_proj"
    inputs: list[torch.Tensor] = []
    model = hf.load_model(calibrated["model"])
    model.get_submodule(name).register_forward_hook(lambda _m, args, _o: inputs.append(args[0][0]))
    with torch.no_grad():
        model(ids)
    weight, errors = state(calibrated["model"])[f"{name}.weight"], {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        params = {"method": method, "sparsity": 0.6, "targets": [name], "device": "cpu"}
        out, _ = run_stage("prune", params, calibrated, tmp_path, name=method)
        errors[method] = float(((state(out)[f"{name}.weight"] - weight) @ inputs[0].T).square().sum())
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_sparsegpt_is_the_same_every_time_on_one_device(calibrated: dict[str, Path], tmp_path: Path) -> None:
    params = {"method": "sparsegpt", "pattern": "2:4", "documents": 3, "targets": ["mlp"]}
    one, _ = run_stage("prune", params, calibrated, tmp_path, name="one")
    two, _ = run_stage("prune", params, calibrated, tmp_path, name="two")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert stage_of("prune", params).reproduces() == "device_dependent"
    assert stage_of("prune", params | {"device": "cpu"}).reproduces() == "deterministic"
    assert stage_of("prune", {"sparsity": 0.5}).reproduces() == "deterministic"
    assert "llmcompressor" in stage_of("prune", params).tools_used()
    assert "llmcompressor" not in stage_of("prune", {"sparsity": 0.5, "method": "wanda"}).tools_used()


def test_weights_that_come_back_are_found(
    calibrated: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sparsegpt.SparseGpt.prune

    def wrong(self: sparsegpt.SparseGpt, model: Any, *rest: Any) -> None:
        right(self, model, *rest)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, :4] = 1.0

    monkeypatch.setattr(sparsegpt.SparseGpt, "prune", wrong)
    params = {"method": "sparsegpt", "pattern": "2:4", "documents": 2, "targets": ["up_proj"]}
    error = failure(StageFailed, params, calibrated, tmp_path / "pattern")
    assert error.code == "E-PRUNE-VERIFY"
    params = {"method": "sparsegpt", "sparsity": 0.5, "documents": 2, "targets": ["up_proj"]}
    monkeypatch.setattr(sparsegpt.SparseGpt, "prune", lambda *_: None)
    error = failure(StageFailed, params, calibrated, tmp_path / "share")
    assert error.code == "E-PRUNE-VERIFY"


def test_one_crowded_block_is_found_among_enough_zeros(
    calibrated: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sparsegpt.SparseGpt.prune

    def wrong(self: sparsegpt.SparseGpt, model: Any, *rest: Any) -> None:
        right(self, model, *rest)
        with torch.no_grad():
            weight = model.model.layers[1].mlp.up_proj.weight
            weight[3, :3] = 1.0
            weight[4, :] = 0.0

    monkeypatch.setattr(sparsegpt.SparseGpt, "prune", wrong)
    params = {"method": "sparsegpt", "pattern": "2:4", "documents": 2, "targets": ["up_proj"]}
    error = failure(StageFailed, params, calibrated, tmp_path)
    assert (error.code, error.facts) == ("E-PRUNE-VERIFY", ("1 blocks",))


def test_a_hessian_without_an_inverse_is_an_error(
    calibrated: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(*_: object) -> list[str]:
        return ["Failed to invert hessian due to numerical instability."]

    monkeypatch.setattr(oneshot, "apply", warned)
    params = {"method": "sparsegpt", "sparsity": 0.5, "documents": 2}
    assert failure(StageFailed, params, calibrated, tmp_path).code == "E-PRUNE-HESSIAN"


def test_embeddings_are_pruned_when_they_are_named_and_by_magnitude_alone(
    base: Path, calibrated: dict[str, Path], tmp_path: Path
) -> None:
    out, metrics = run_stage("prune", {"sparsity": {"embeddings": 0.5}}, {"model": base}, tmp_path)
    assert {name for name, share in shares(out).items() if share} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert metrics["embeddings_sparsity"].value == metrics["sparsity"].value == 0.5
    for method in ("wanda", "sparsegpt"):
        params = {"method": method, "sparsity": {"embeddings": 0.5, "attention": 0.5}}
        error = failure(RefusedInput, params, calibrated, tmp_path / method)
        assert error.code == "E-PRUNE-MODULES"
        assert "magnitude" in str(error)


def test_patterns_that_do_not_fit_are_refused(calibrated: dict[str, Path], tmp_path: Path) -> None:
    mixed = {"pattern": {"attention": "2:4", "down_proj": "2:5"}}
    error = failure(RefusedInput, mixed, {"model": calibrated["model"]}, tmp_path / "a")
    assert error.code == "E-PRUNE-SHAPE"
    assert "down_proj" in str(error.facts)
    cut = {"method": "sparsegpt", "pattern": "2:4", "block_size": 6}
    assert failure(RefusedInput, cut, calibrated, tmp_path / "b").code == "E-PRUNE-SHAPE"


@pytest.mark.parametrize("method", ["sparsegpt", "depth"])
def test_methods_that_look_at_data_need_some_with_tokens(
    calibrated: dict[str, Path], tmp_path: Path, method: str
) -> None:
    params = {"method": method} | ({"sparsity": 0.5} if method == "sparsegpt" else {"drop_layers": 1})
    model = {"model": calibrated["model"]}
    assert failure(RefusedInput, params, model, tmp_path / "a").code == "E-PRUNE-CALIBRATION"
    assert [role for role, _ in stage_of("prune", params).misfits(frozenset(model))] == ["calibration"]
    empty = dataset(tmp_path / "empty", train=0)
    assert failure(RefusedInput, params, model | {"calibration": empty}, tmp_path / "b").code == "E-DATASET-EMPTY"


@pytest.mark.parametrize(
    "params",
    [{"sparsity": {"attention": 1.0}}, {"sparsity": {"attention": -0.1}}, {"sparsity": {}}, {"pattern": {"mlp": "4:4"}},
     {"sparsity": {"mlp": 0.5}, "pattern": "2:4"}, {"sparsity": {"mlp": 0.5}, "pattern": {"mlp": "2:4"}},
     {"sparsity": {"mlp": 0.5}, "targets": ["q_proj"]}, {"method": "depth"}, {"method": "depth", "drop_layers": 0},
     {"method": "depth", "drop_layers": 1, "sparsity": 0.5}, {"drop_layers": 2, "sparsity": 0.5},
     {"method": "depth", "drop_layers": 1.5}],
)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("prune").model_validate_json(json.dumps(params), strict=True)


def test_the_layers_of_least_influence_go_and_the_rest_is_a_model(calibrated: dict[str, Path], tmp_path: Path) -> None:
    params = {"method": "depth", "drop_layers": 2, "documents": 6}
    out, metrics = run_stage("prune", params, calibrated, tmp_path)
    report = json.loads((out / "prune.json").read_text())["layers"]
    values = [layer["influence"] for layer in report]
    gone = [layer["layer"] for layer in report if layer["dropped"]]
    assert sorted(values)[:2] == sorted(values[layer] for layer in gone)
    assert metrics["influence_dropped"].value == sorted(values)[1] < metrics["influence_kept"].value
    assert (metrics["layers"].value, metrics["layers_dropped"].value) == (3, 2)
    before, after = state(calibrated["model"]), state(out)
    kept = [layer for layer in range(5) if layer not in gone]
    for number, layer in enumerate(kept):
        name = "mlp.up_proj.weight"
        assert after[f"model.layers.{number}.{name}"].equal(before[f"model.layers.{layer}.{name}"])
    assert metrics["parameters"].value == sum(weight.numel() for weight in after.values())
    assert metrics["parameters_before"].value == sum(weight.numel() for weight in before.values())
    # The same as the whole model whose dropped layers pass on what they are given.
    whole, short = hf.load_model(calibrated["model"]), hf.load_model(out)
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[layer] for layer in kept)
    assert torch.equal(logits(short, 512), logits(whole, 512))
    run_stage("gguf", {"type": "F16"}, {"model": out}, tmp_path, name="gguf")


def test_the_influence_is_what_the_formula_says() -> None:
    model = llama().double()
    rows = [[1, 2, 3, 4, 5], [9, 8]]
    found = depth.influences(model, depth.stack_of(model), rows, lambda *_: None)
    sums, tokens = [0.0, 0.0], 0
    states: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, args, output: states.extend([args[0][0], output[0]]))
    for row in rows:
        states.clear()
        with torch.no_grad():
            model(torch.tensor([row]))
        for layer in range(2):
            before, after = states[2 * layer], states[2 * layer + 1]
            for token in range(len(row)):
                cosine = before[token] @ after[token] / before[token].norm() / after[token].norm()
                sums[layer] += 1 - float(cosine)
        tokens += len(row)
    assert found == pytest.approx([total / tokens for total in sums])
    assert depth.lowest([0.2, 0.1, 0.1, 0.4], 1) == [2]
    assert depth.lowest([0.2, 0.1, 0.1, 0.4], 0.5) == [1, 2]


def test_lists_with_an_entry_a_layer_follow() -> None:
    config = {"model_type": "x", "num_hidden_layers": 3, "vocab_size": 9}
    resolved = config | {"layer_types": ["a", "b", "c"], "no_rope_layers": [1, 1, 0], "eos_token_id": [1, 2, 3]}
    assert depth.config_without(config, resolved, [1]) == {
        "model_type": "x", "num_hidden_layers": 2, "vocab_size": 9, "layer_types": ["a", "c"], "no_rope_layers": [1, 0],
    }  # fmt: skip
    with pytest.raises(RefusedInput, match="by number"):
        depth.config_without(config, resolved | {"mlp_only_layers": [1]}, [1])


@pytest.mark.parametrize("wanted", [5, 9, 0.05, 0.95])
def test_one_layer_at_least_goes_and_one_stays(calibrated: dict[str, Path], tmp_path: Path, wanted: float) -> None:
    error = failure(RefusedInput, {"method": "depth", "drop_layers": wanted, "documents": 1}, calibrated, tmp_path)
    assert error.code == "E-PRUNE-DEPTH"
