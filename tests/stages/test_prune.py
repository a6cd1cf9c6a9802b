from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ingot.core.stage import load_kind
from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.kit import hf, sparsity
from ingot.kit.prune import wanda
from stagekit import run_stage
from tinymodels import chat_model, dataset, llama, save, state


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(llama(), tmp_path / "base")


@pytest.fixture(scope="module")
def calibrated(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("calibrated")
    return {"model": chat_model(stories, tmp / "model"), "calibration": dataset(tmp / "data", train=6)}


def failure(kind: type[IngotError], params: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> IngotError:
    with pytest.raises(kind) as caught:
        run_stage("prune", params, inputs, tmp_path)
    return caught.value


def test_magnitude_drops_the_smallest_of_each_tensor(base: Path, tmp_path: Path) -> None:
    out, metrics = run_stage("prune", {"sparsity": 0.3}, {"model": base}, tmp_path)
    before, after = state(base), state(out)
    for name, weight in before.items():
        if "_proj" not in name:
            assert after[name].equal(weight)
            continue
        gone = after[name] == 0
        assert int(gone.sum()) == round(0.3 * weight.numel())
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
        assert after[name][~gone].equal(weight[~gone])
    report = json.loads((out / "prune.json").read_text())["modules"]
    assert len(report) == metrics["pruned_layers"].value == 14
    assert sum(item["zeros"] for item in report) == metrics["zeros"].value
    share = metrics["zeros"].value / metrics["pruned_parameters"].value
    assert metrics["sparsity"].value == share == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_a_pattern_holds_in_what_was_written(base: Path, tmp_path: Path, pattern: str) -> None:
    out, metrics = run_stage("prune", {"pattern": pattern}, {"model": base}, tmp_path)
    keep, block = map(int, pattern.split(":"))
    assert metrics["sparsity"].value == metrics["sparsity_lowest"].value == 1 - keep / block
    for name, weight in state(out).items():
        if "_proj" in name:
            blocks = weight.reshape(-1, block)
            assert int((blocks != 0).sum(dim=1).max()) <= keep
            source = state(base)[name].reshape(-1, block).abs()
            kept = source.topk(keep, dim=1).values.sum()
            assert blocks.abs().sum() == pytest.approx(kept.item(), rel=1e-5)


def test_wanda_scores_by_what_flows_in(calibrated: dict[str, Path], tmp_path: Path) -> None:
    params = {"method": "wanda", "sparsity": 0.5, "documents": 4}
    out, metrics = run_stage("prune", params, calibrated, tmp_path)
    assert metrics["sparsity"].value == 0.5
    model = hf.load_model(calibrated["model"])
    name = "model.layers.2.mlp.down_proj"
    inputs: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda _m, args, _o: inputs.append(args[0][0]))
    from ingot.kit import chat

    rows = sorted(chat.read_rows(calibrated["calibration"], "train"), key=lambda row: str(row["id"]))[:4]
    tokenizer = hf.load_tokenizer(calibrated["model"])
    for row in rows:
        with torch.no_grad():
            model(torch.tensor([chat.encode(tokenizer, row, max_length=512).ids]))
    norm = torch.cat(inputs).norm(dim=0)
    weight = state(calibrated["model"])[f"{name}.weight"]
    score = weight.abs() * norm
    gone = state(out)[f"{name}.weight"] == 0
    assert gone.sum(dim=1).tolist() == [86] * 64
    highest_gone = score.masked_fill(~gone, 0).amax(dim=1)
    lowest_kept = score.masked_fill(gone, torch.inf).amin(dim=1)
    assert bool((highest_gone <= lowest_kept * (1 + 1e-5)).all())
    by_size, _ = run_stage("prune", {"sparsity": 0.5}, {"model": calibrated["model"]}, tmp_path, name="by-size")
    assert not (state(by_size)[f"{name}.weight"] == 0).equal(gone)


def test_targets_choose_the_layers(base: Path, tmp_path: Path) -> None:
    out, metrics = run_stage("prune", {"sparsity": 0.5, "targets": ["mlp.up_proj"]}, {"model": base}, tmp_path)
    assert metrics["pruned_layers"].value == 2
    changed = [name for name, weight in state(out).items() if not weight.equal(state(base)[name])]
    assert changed == ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    error = failure(RefusedInput, {"sparsity": 0.5, "targets": ["up"]}, {"model": base}, tmp_path / "x")
    assert error.code == "E-PRUNE-MODULES"
    assert "up_proj" in str(error)


def test_wanda_needs_calibration(base: Path, tmp_path: Path) -> None:
    error = failure(RefusedInput, {"method": "wanda", "sparsity": 0.5}, {"model": base}, tmp_path)
    assert error.code == "E-PRUNE-CALIBRATION"


def test_wanda_needs_a_row(calibrated: dict[str, Path], tmp_path: Path) -> None:
    empty = dataset(tmp_path / "empty", train=0)
    inputs = {**calibrated, "calibration": empty}
    assert failure(RefusedInput, {"method": "wanda", "sparsity": 0.5}, inputs, tmp_path).code == "E-DATASET-EMPTY"


def test_rows_that_cannot_hold_the_pattern_are_refused(base: Path, tmp_path: Path) -> None:
    error = failure(RefusedInput, {"pattern": "3:5"}, {"model": base}, tmp_path)
    assert error.code == "E-PRUNE-SHAPE"


@pytest.mark.parametrize(("params", "fault"), [({"sparsity": 0.5}, "lowest"), ({"pattern": "2:4"}, "n_of_m")])
def test_a_mask_that_is_too_small_is_found_in_the_file(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], fault: str
) -> None:
    right = getattr(sparsity, fault)

    def wrong(scores: torch.Tensor, *settings: Any) -> torch.Tensor:
        mask: torch.Tensor = right(scores, *settings)
        mask.view(-1)[mask.view(-1).nonzero()[0]] = False
        return mask

    monkeypatch.setattr(sparsity, fault, wrong)
    assert failure(StageFailed, params, {"model": base}, tmp_path).code == "E-PRUNE-VERIFY"


@pytest.mark.parametrize(
    "params",
    [{}, {"sparsity": 1.0}, {"sparsity": 0.0}, {"sparsity": 0.5, "pattern": "2:4"}, {"pattern": "4:4"},
     {"pattern": "2/4"}, {"pattern": "2:65"}],
)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("prune").model_validate_json(json.dumps(params), strict=True)


def test_ties_go_by_index() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert sparsity.lowest(scores, 3 / 8).tolist() == [[True, True, True, False], [False] * 4]
    assert sparsity.lowest_per_row(scores, 0.5).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert sparsity.n_of_m(scores, 1, 2).tolist() == [[True, False, True, False], [True, False, True, False]]
    assert not sparsity.lowest(scores, 0.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9])
def test_the_smallest_are_those_that_a_sort_finds(dtype: torch.dtype, share: float) -> None:
    """Many ties in the narrow types, both zeros among them, and more weights than are looked at at once."""
    weight = torch.randn(613, 541, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight[::7, ::5] = 0.0
    weight[1::7, ::5] = -0.0
    order = torch.sort(weight.float().abs().flatten(), stable=True).indices
    expected = torch.zeros(weight.numel(), dtype=torch.bool)
    expected[order[: round(share * weight.numel())]] = True
    assert torch.equal(sparsity.lowest(weight, share).flatten(), expected)


def test_crowded_blocks_are_counted() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
    assert sparsity.crowded(weight, 2, 4) == 1
    assert sparsity.crowded(weight, 3, 4) == 0
    assert sparsity.zeros(weight) == 3


def test_norms_do_not_depend_on_how_rows_are_cut() -> None:
    model = llama()
    rows = [[1, 2, 3, 4, 5], [9, 8, 7]]
    name = "model.layers.0.self_attn.q_proj"
    one = wanda.input_norms(model, [name], rows, lambda *_: None)[name]
    two = wanda.input_norms(model, [name], rows[::-1], lambda *_: None)[name]
    assert one.equal(two)
    assert one.shape == (32,)
    alone = [wanda.input_norms(model, [name], [row], lambda *_: None)[name] for row in rows]
    assert torch.allclose(one.square(), alone[0].square() + alone[1].square())
