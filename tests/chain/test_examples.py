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


def test_the_cogumi_chain_is_known_by_arithmetic_before_anything_is_fetched(shipped: Sandbox) -> None:
    """Sizes and memory at the least, from the base's parameters on; three modifiers, one a domain, on the same base."""
    plan = shipped.json("plan", "cogumi-llama-3.1-8b")
    targets = {item["target"].partition(":")[2]: item for item in plan["targets"]}
    kinds = {name: item["kind"] for name, item in targets.items() if not name.startswith("report.")}
    assert kinds == {
        "base": "fetch", "dataset": "dataset", "adapter": "adapter", "merged": "merge", "pruned": "prune",
        "recovered": "recover", "awq": "quantize", "gguf": "gguf", "awq-packed": "pack", "gguf-packed": "pack",
        **{f"{kind}@{domain}": word for kind, word in (("domain", "dataset"), ("modifier", "adapter"))
           for domain in ("code", "language", "both")},
        **{f"modifier-gguf@{domain}": "lora_gguf" for domain in ("code", "language", "both")},
        "report": "report",
    }  # fmt: skip
    weights, gigabyte = 8_030_261_248, 10**9
    least = {name: item["at_least"] for name, item in targets.items() if item["at_least"]}
    assert least["base"]["bytes"] == 2 * weights
    assert all(15.9 * gigabyte < least[name]["bytes"] <= 2 * weights for name in ("merged", "pruned", "recovered"))
    assert 3.9 * gigabyte < least["awq"]["bytes"] < 5 * gigabyte < least["gguf"]["bytes"] < 5.6 * gigabyte
    assert least["adapter"]["memory_bytes"] == weights // 2
    assert least["adapter"]["device"] in ("cpu", "cuda")
    if least["recovered"]["device"] == "cpu":
        assert 31.9 * gigabyte < least["recovered"]["memory_bytes"] < 4 * weights
    assert plan["disk"]["needed_bytes"] > 70 * gigabyte
    assert plan["totals"]["costs"] == {}, "money only follows from time, which nobody has measured"


def test_the_itera_variants_are_compared_in_one_report(shipped: Sandbox) -> None:
    plan = shipped.json("plan", "itera-lite")
    targets = {item["target"].partition(":")[2]: item for item in plan["targets"]}
    compared = {name.partition(".")[2] for name in targets if name.startswith("report.")}
    assert compared == {"student", "fp16", "int8-embedding", "int4", "gguf@F16", "gguf@Q4_0"}
    sizes = {name: item["at_least"]["bytes"] for name, item in targets.items() if item["at_least"]}
    assert sizes["student"] > sizes["fp16"] > sizes["int8-embedding"] > sizes["int4"] > 0
    student = targets["student"]["at_least"]
    assert student["memory_bytes"] == 4 * student["bytes"], "weights, gradients and two moments, all in float32"
    assert plan["refused"] == []
