"""Pruning in levels, with training between them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ingot.core.stage import Done, Given, load_kind
from ingot.errors import RefusedInput
from ingot.kit.prune import gradual, held
from stagekit import Recorder, run_stage, stage_of
from tinymodels import chat_model, dataset, state

LEARNING = {
    "steps": 3, "batch_size": 2, "learning_rate": 3e-3, "dtype": "float32", "checkpoint_every": 0.0,
    "eval_documents": 6,
}  # fmt: skip
SCHEDULE: dict[str, Any] = {"steps": 3, "recover": LEARNING}


@pytest.fixture(scope="module")
def inputs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("inputs")
    rows = dataset(tmp / "rows")
    return {"model": chat_model(stories, tmp / "model"), "calibration": rows, "data": rows}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_each_level_prunes_more_and_what_was_zero_stays(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    masks: list[dict[str, torch.Tensor]] = []
    right = held.Held.of

    def watched(model: Any, modules: Any) -> held.Held:
        found = right(model, modules)
        masks.append(dict(found.masks))
        return found

    monkeypatch.setattr(held.Held, "of", watched)
    params = {"method": method, "sparsity": {"mlp": 0.6}, "schedule": SCHEDULE, "documents": 2, "device": "cpu"}
    out, metrics = run_stage("prune", params, inputs, tmp_path)
    for before, after in pairwise(masks):
        for name, mask in before.items():
            assert bool(after[name][mask].all()), "a zero came back"
    written = state(out)
    assert all(bool(written[f"{name}.weight"][mask].eq(0).all()) for name, mask in masks[-1].items())
    report = json.loads((out / "prune.json").read_text())
    levels = report["levels"]
    assert [level["sparsity"] for level in levels] == pytest.approx(
        [0.6 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)], abs=0.01
    )
    assert [level.get("steps") for level in levels] == [3, 3, None]
    assert all(level["eval_loss_after"] < level["eval_loss_before"] for level in levels[:-1])
    assert (metrics["levels"].value, metrics["recovery_steps"].value) == (3, 6)
    assert metrics["sparsity"].value == pytest.approx(0.6, abs=0.01)
    untouched = {name for name, weight in state(inputs["model"]).items() if weight.equal(written[name])}
    assert untouched == {name for name in written if ".mlp." not in name}


class Killed(Exception):
    """Stands for the end of the process."""


class Stopping(Recorder):
    """Ends the attempt at the n-th optimizer step that is reported, counted over all levels."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.steps = 0

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        if unit == "steps":
            self.steps += 1
            if self.steps == self.left:
                raise Killed


def test_an_ended_run_goes_on_and_ends_with_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    stage = stage_of("prune", {"sparsity": 0.5, "schedule": SCHEDULE, "device": "cpu"})
    folders = {role: (path,) for role, path in inputs.items() if role != "calibration"}

    def attempt(name: str, progress: Stopping, checkpoints: Path | None) -> bytes:
        out, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        out.mkdir()
        scratch.mkdir()
        given = Given(folders, {}, scratch, checkpoints=checkpoints, key="k" * 64)
        assert Done.of(stage.run(given, out, progress)).metrics["recovery_steps"].value == 6
        return (out / "model.safetensors").read_bytes()

    whole = attempt("whole", Stopping(-1), None)
    with pytest.raises(Killed):
        attempt("killed", Stopping(5), tmp_path / "cp")
    again = Stopping(-1)
    assert attempt("again", again, tmp_path / "cp") == whole
    assert again.steps == 2, "three of the first level and one of the second were there"


def test_the_shapes_are_those_of_the_paper() -> None:
    between = gradual.Between(
        levels=4, shape="cubic", settings=None, seed=0, device="cpu", max_length=8, too_long="truncate",  # type: ignore[arg-type]
        completion_only=True, eval_documents=0, packing=True,
    )  # fmt: skip
    assert [between.share(0.8, t) for t in range(1, 5)] == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    assert [replace(between, shape="linear").share(0.8, t) for t in range(1, 5)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_a_schedule_needs_data_and_data_a_schedule(inputs: dict[str, Path], tmp_path: Path) -> None:
    params = {"sparsity": 0.5, "schedule": SCHEDULE}
    assert [role for role, _ in stage_of("prune", params).misfits(frozenset({"model"}))] == ["data"]
    assert [role for role, _ in stage_of("prune", {"sparsity": 0.5}).misfits(frozenset({"model", "data"}))] == ["data"]
    assert not stage_of("prune", params).weightwise()
    assert stage_of("prune", params).goes_on() and not stage_of("prune", {"sparsity": 0.5}).goes_on()
    empty = dataset(tmp_path / "empty", train=0)
    with pytest.raises(RefusedInput) as caught:
        run_stage("prune", params | {"device": "cpu"}, {"model": inputs["model"], "data": empty}, tmp_path)
    assert caught.value.code == "E-DATASET-EMPTY"


@pytest.mark.parametrize(
    "params",
    [{"pattern": "2:4", "schedule": SCHEDULE}, {"sparsity": 0.5, "schedule": {"steps": 1, "recover": LEARNING}},
     {"sparsity": 0.5, "schedule": {"steps": 3}}, {"method": "depth", "drop_layers": 1, "schedule": SCHEDULE}],
)  # fmt: skip
def test_wrong_schedules_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_kind("prune").model_validate_json(json.dumps(params), strict=True)
