"""The specs that we ship: each parses and plans anywhere, without network; examples are built by name only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from projectkit import DOIT, REPO, Sandbox

SPECS = sorted((REPO / "specs").rglob("*.yaml"))


@pytest.fixture
def shipped(sandbox: Sandbox) -> Sandbox:
    shutil.rmtree(sandbox.root / "specs")
    shutil.copytree(REPO / "specs", sandbox.root / "specs")
    return sandbox


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.stem))
def test_a_shipped_spec_plans_without_network(path: Path, shipped: Sandbox) -> None:
    offline = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    command = [*(["unshare", "-n"] if offline else []), DOIT, "plan", path.stem]
    done = subprocess.run(command, cwd=shipped.root, env=shipped.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{path.stem}:gguf" in done.stdout
    assert not (shipped.root / "registry").exists()


def test_doit_alone_does_not_mean_the_examples(shipped: Sandbox) -> None:
    assert {name.partition(":")[0] for name in shipped.states()} == {"smollm2-pydoc", "toy-8ball"}
    listed = shipped.ok("list")
    assert "milton-llama-3.1-8b:gguf" in listed


def test_the_milton_chain_is_what_its_readers_expect(shipped: Sandbox) -> None:
    plan = shipped.json("plan", "milton-llama-3.1-8b")
    kinds = {item["target"].partition(":")[2]: item["kind"] for item in plan["targets"]}
    assert kinds == {"base": "fetch", "adapter": "fetch", "merged": "merge", "gguf": "gguf"}
