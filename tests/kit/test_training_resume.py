"""A training that was ended goes on from its last checkpoint, ends with the same bytes, and takes up no other's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.core.stage import Given
from ingot.kit.train import run
from ingot.kit.train.documents import Corpus
from ingot.kit.train.layout import Layout
from ingot.kit.train.next_token import NextToken
from stagekit import Recorder
from tinymodels import llama
from trainkit import Doc, docs_of, settings

STEPS = 7
LAYOUT = Layout("packed", 64)


class Killed(Exception):
    """Stands for the end of the process."""


class Stopping(Recorder):
    """Ends the attempt when a step is reported, before its checkpoint is written."""

    def __init__(self, step: float | None) -> None:
        super().__init__()
        self._step = step

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        super().__call__(done, total, unit, **live)
        if unit == "steps" and done == self._step:
            raise Killed


def attempt(
    folder: Path | None, stop: float | None = None, *, key: str = "a" * 64, seed: int = 3, **changes: Any
) -> tuple[run.Outcome, dict[str, torch.Tensor], Stopping]:
    """Train a model with dropout on a few documents; what came out, its weights and what was reported."""
    items = docs_of(11)
    by_id = {item.id: item for item in items}
    model = llama(attention_dropout=0.2, vocab_size=160)  # 5120 numbers a matrix: enough for moments of 8 bits
    task: run.Task[Doc] = run.Task(
        model, NextToken(LAYOUT), Corpus([{"id": item.id} for item in items], lambda row: by_id[row["id"]]), LAYOUT,
        held=items[:2],
    )  # fmt: skip
    fields: dict[str, Any] = {"steps": STEPS, "batch_size": 3, "eval_every": 2, "checkpoint_every": 0.0}
    progress = Stopping(stop)
    given = Given({}, {}, Path(), seed=seed, checkpoints=folder, key=key)
    torch.use_deterministic_algorithms(mode=True)
    try:
        outcome = run.train(settings(**{**fields, **changes}), task, given, progress)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    return outcome, dict(model.state_dict()), progress


def same(one: tuple[run.Outcome, dict[str, torch.Tensor], Any], other: tuple[run.Outcome, Any, Any]) -> bool:
    left, right = one[0], other[0]
    curves = (left.history, left.evals, left.kept) == (right.history, right.evals, right.kept)
    return curves and all(tensor.equal(other[1][name]) for name, tensor in one[1].items())


@pytest.fixture(scope="module", params=["adamw", "adamw_8bit"])
def whole(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A training that nobody ended."""
    if request.param == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="its moments of 8 bits: pip install 'ingot[ml]'")
    return request.param, attempt(None, optimizer=request.param)


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_ended_after_any_step_it_ends_as_if_nobody_had(whole: tuple[str, Any], stop: int, tmp_path: Path) -> None:
    optimizer, expected = whole
    with pytest.raises(Killed):
        attempt(tmp_path, stop, optimizer=optimizer)
    again = attempt(tmp_path, optimizer=optimizer)
    assert same(again, expected)
    assert again[0].resumed_from == (stop - 1 or None)
    steps = [done for done, _, unit, _ in again[2].events if unit == "steps"]
    assert steps == list(range(stop, STEPS + 1))
    assert (f"train, resumed at step {stop - 1}" in again[2].phases) is (stop > 1)


def test_ended_again_and_again_it_still_gets_there(tmp_path: Path) -> None:
    for stop in (2, 2, 5, 6):
        with pytest.raises(Killed):
            attempt(tmp_path, stop)
    assert same(attempt(tmp_path), attempt(None))


def test_what_is_finished_takes_no_step(tmp_path: Path) -> None:
    first = attempt(tmp_path)
    again = attempt(tmp_path)
    assert same(again, first)
    assert [unit for _, _, unit, _ in again[2].events] == []
    assert again[0].metrics()["train_seconds"].value == first[0].seconds
    assert "earlier attempt" in again[0].metrics()["train_seconds"].method
    assert "earlier attempt" not in first[0].metrics()["train_seconds"].method


def test_the_last_two_are_kept_and_no_half_one(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, 5)
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "tensors.safetensors").write_bytes(b"half")
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["step-00000003", "step-00000004"]
    assert same(attempt(tmp_path), attempt(None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000007"]


def test_with_a_long_interval_only_the_end_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, 5, checkpoint_every=3600.0)
    assert list(tmp_path.iterdir()) == []
    attempt(tmp_path, checkpoint_every=3600.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def flipped(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "state.json"
    path.write_bytes(path.read_bytes()[:-40])


def retold(folder: Path) -> None:
    path = folder / "state.json"
    stored = json.loads(path.read_text())
    stored["state"]["body"]["history"][0]["loss"] = 1.0
    path.write_text(json.dumps(stored))


def emptied(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [flipped, cut, retold, emptied])
def test_a_damaged_one_is_passed_over(damage: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, 5)
    damage(tmp_path / "step-00000004")
    again = attempt(tmp_path)
    assert again[0].resumed_from == 3
    assert same(again, attempt(None))


def test_when_all_are_damaged_it_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, 5)
    for folder in tmp_path.glob("step-*"):
        flipped(folder)
    again = attempt(tmp_path)
    assert again[0].resumed_from is None
    assert same(again, attempt(None))


@pytest.mark.parametrize(
    "other",
    [{"key": "b" * 64}, {"seed": 4}, {"steps": STEPS + 1}, {"learning_rate": 0.02}, {"optimizer": "adamw_8bit"}],
)
def test_no_other_training_takes_it_up(other: dict[str, Any], tmp_path: Path) -> None:
    if "optimizer" in other:
        pytest.importorskip("bitsandbytes", reason="its moments of 8 bits: pip install 'ingot[ml]'")
    with pytest.raises(Killed):
        attempt(tmp_path / "a", 5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = attempt(tmp_path / "b", **other)
    assert again[0].resumed_from is None
    assert same(again, attempt(None, **other))


def test_another_format_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, 5)
    monkeypatch.setattr("ingot.kit.train.checkpoints.FORMAT", 2)
    assert attempt(tmp_path)[0].resumed_from is None


def test_early_stopping_is_the_same_after_an_end(tmp_path: Path) -> None:
    worse: dict[str, Any] = {"learning_rate": 0.3, "patience": 1, "eval_every": 1, "steps": 30}
    expected = attempt(None, **worse)
    assert expected[0].stopped_early
    taken = len(expected[0].history)
    assert 1 < taken < 30
    assert expected[0].kept < taken
    for stop in (1, taken - 1, taken):
        with pytest.raises(Killed):
            attempt(tmp_path / str(stop), stop, **worse)
        assert same(attempt(tmp_path / str(stop), **worse), expected)
