"""A real ``doit`` that is killed while it trains: the next one goes on, and the adapter has the same bytes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from projectkit import DOIT, Sandbox
from stagekit import digest_of, run_stage
from tinymodels import chat_model, dataset

STEPS = 30
ADAPTER = (
    "  adapter: {kind: adapter, from: {model: model, data: data}, steps: %d, rank: 4, dropout: 0.1, batch_size: 2,"
    " learning_rate: %s, dtype: float32, device: cpu, eval_every: 10, checkpoint_every: %s}\n"
)


def project(stories: Path, folder: Path, rate: str = "1e-3") -> Sandbox:
    folder.mkdir()
    sandbox = Sandbox.make(folder)
    shutil.copytree(chat_model(stories, folder / "model"), sandbox.root / "model")
    shutil.copytree(dataset(folder / "data"), sandbox.root / "data")
    declare(sandbox, rate)
    return sandbox


def declare(sandbox: Sandbox, rate: str, every: str = "0") -> None:
    inputs = "targets:\n  model: {kind: fetch, path: ../model}\n  data: {kind: fetch, path: ../data}\n"
    sandbox.spec(inputs + ADAPTER % (STEPS, rate, every))


def kept(sandbox: Sandbox) -> list[Path]:
    return sorted((sandbox.root / "cache" / "checkpoints").glob("*/*/step-*"))


def killed_after(sandbox: Sandbox, steps: int) -> int:
    """Kill ``doit`` with SIGKILL once a checkpoint of so many steps is there; the step of the last one kept."""
    with subprocess.Popen([DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.DEVNULL) as doit:
        deadline = time.monotonic() + 100
        while not any(int(path.name[5:]) >= steps for path in kept(sandbox)):
            assert doit.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        doit.send_signal(signal.SIGKILL)
    return int(kept(sandbox)[-1].name[5:])


def receipt(sandbox: Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.json("show", "s:adapter")
    return found


def test_a_killed_doit_ends_with_the_same_bytes(stories: Path, tmp_path: Path) -> None:
    sandbox = project(stories, tmp_path / "a")
    last = killed_after(sandbox, 4)
    declare(sandbox, "1e-3", every="3600")  # how often a checkpoint is written changes no byte, so it is in no key
    found = receipt_after(sandbox)
    assert 4 <= last <= found["notes"]["resumed_from_step"] < STEPS
    assert kept(sandbox) == []
    inputs = {"model": sandbox.root / "model", "data": sandbox.root / "data"}
    params = found["key_parts"]["params"]
    out, _ = run_stage("adapter", params, inputs, tmp_path, seed=1, threads=found["environment"]["threads"])
    assert digest_of(out) == found["digest"]


@pytest.mark.slow
def test_another_key_begins_anew_and_leaves_what_is_kept(stories: Path, tmp_path: Path) -> None:
    ended = project(stories, tmp_path / "ended")
    last = killed_after(ended, 5)
    declare(ended, "2e-3")
    assert "resumed_from_step" not in receipt_after(ended)["notes"]
    declare(ended, "1e-3")
    assert last <= receipt_after(ended)["notes"]["resumed_from_step"] < STEPS


def receipt_after(sandbox: Sandbox) -> dict[str, Any]:
    """The receipt of the adapter, built by now."""
    sandbox.ok()
    return receipt(sandbox)


@pytest.mark.slow
def test_killed_again_and_again(stories: Path, tmp_path: Path) -> None:
    whole, ended = project(stories, tmp_path / "whole"), project(stories, tmp_path / "ended")
    for steps in (1, 9, 17, STEPS - 2):
        killed_after(ended, steps)
    assert receipt_after(ended)["digest"] == receipt_after(whole)["digest"]
