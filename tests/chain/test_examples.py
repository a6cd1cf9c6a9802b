"""The specs that we ship: each parses and plans anywhere, without network; examples are built by name only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from projectkit import DOIT, REPO, Sandbox
from stagekit import stage_of

SPECS = sorted((REPO / "specs").rglob("*.yaml"))


@pytest.fixture
def shipped(sandbox: Sandbox) -> Sandbox:
    shutil.rmtree(sandbox.root / "specs")
    for name in ("specs", "tasks"):
        shutil.copytree(REPO / name, sandbox.root / name)
    return sandbox


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.stem))
def test_a_shipped_spec_plans_without_network(path: Path, shipped: Sandbox) -> None:
    offline = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    command = [*(["unshare", "-n"] if offline else []), DOIT, "plan", path.stem]
    done = subprocess.run(command, cwd=shipped.root, env=shipped.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"\n{path.stem}:" in done.stdout
    assert not (shipped.root / "registry").exists()


def test_doit_alone_does_not_mean_the_examples(shipped: Sandbox) -> None:
    assert {name.partition(":")[0] for name in shipped.states()} == {"smollm2-pydoc", "toy-8ball"}
    listed = shipped.ok("list")
    assert "milton-llama-3.1-8b:gguf" in listed
    assert "student-coreml-9b:drafter-coreml" in listed


def test_the_tasks_of_lm_eval_are_asked_of_every_form(shipped: Sandbox) -> None:
    plan = shipped.json("plan", "ask-with-lm-eval")
    asked = [item["target"].partition(":")[2] for item in plan["targets"] if item["kind"] == "harness"]
    forms, tasks = ("base", "gguf@Q8_0", "gguf@Q4_0"), ("problems", "endings", "programs")
    assert sorted(asked) == sorted(f"report.{form}.{task}" for form in forms for task in tasks)


@pytest.mark.parametrize("name", ["word-problems", "endings", "programs"])
def test_the_shipped_tasks_are_sound(name: str) -> None:
    from ingot.kit.harness.run import chosen

    (task,) = (path.stem for path in (REPO / "tasks" / name).glob("*.yaml"))
    assert chosen(REPO / "tasks" / name, f"tasks/{name}", (task,), may_run=True).names == (task,)


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
    compared = {name.partition(".")[2] for name in targets if name.startswith("report.")} - {"student.logits"}
    assert compared == {"student", "fp16", "int8-embedding", "int4", "gguf@F16", "gguf@Q4_0"}
    sizes = {name: item["at_least"]["bytes"] for name, item in targets.items() if item["at_least"]}
    assert sizes["student"] > sizes["fp16"] > sizes["int8-embedding"] > sizes["int4"] > 0
    student = targets["student"]["at_least"]
    assert student["memory_bytes"] == 4 * student["bytes"], "weights, gradients and two moments, all in float32"
    assert plan["refused"] == []


def test_the_agent_is_held_to_its_four_gates_over_questions_that_can_be_answered(shipped: Sandbox) -> None:
    plan = shipped.json("plan", "tool-use-gates")
    targets = {item["target"].partition(":")[2]: item for item in plan["targets"]}
    asked = {name for name, item in targets.items() if item["kind"] == "tool_calls"}
    assert asked == {"report.gguf@Q8_0.tools", "report.gguf@Q4_K_M.tools"}
    spec = YAML(typ="safe", pure=True).load(REPO / "specs" / "examples" / "tool-use-gates.yaml")
    assert spec["gates"] == {
        f"report.gguf@Q4_K_M.tools.{metric}": bound
        for metric, bound in (
            ("f1_lax", {"min": 0.9}), ("privacy", {"min": 1.0}), ("control_integration", {"max": 0}),
            ("fixture_hit_rate", {"min": 0.95}),
        )
    }  # fmt: skip
    task = {name: value for name, value in spec["targets"]["report"]["tasks"]["tools"].items() if name != "kind"}
    measured = stage_of("tool_calls", task).measured(frozenset({"candidate"}))
    assert {gate.rpartition(".")[2] for gate in spec["gates"]} <= set(measured)
    assert targets["report"]["gate"] == "unknown", "nothing is measured yet"


#: Of each role: weights, bytes of keys and values a token (in fp16), and its contexts.
ROLES = {
    "worker": (8_829_407_232, 48 * 2 * 4 * 128 * 2, (4096, 8192, 16_384)),
    "judge": (3_961_839_360 + 2 * 32_000 * 3840, 24 * 2 * 8 * 120 * 2, (512, 1024, 2048)),
    "drafter": (3_961_839_360 + 2 * 32_000 * 3840, 24 * 2 * 8 * 120 * 2, (2048, 4096)),
}


def test_the_roles_of_the_student_family_have_budgets_before_anything_is_built(shipped: Sandbox) -> None:
    plan = shipped.json("plan", "student-coreml-9b")
    budgets = {item["target"].partition(":")[2]: item["budget"] for item in plan["targets"] if item["budget"]}
    assert set(budgets) == {f"{role}-coreml@{context}" for role, it in ROLES.items() for context in it[2]}
    memory = 64 * 10**9
    for role, (weights, token, contexts) in ROLES.items():
        for context in contexts:
            session = token * context
            assert budgets[f"{role}-coreml@{context}"] == {
                "weights_bytes": weights, "measured": False, "token_bytes": token, "context": context,
                "session_bytes": session, "memory_bytes": memory, "fits": True,
                "sessions": (memory - weights) // session,
            }  # fmt: skip
    assert "E-BUDGET" not in {item["code"] for item in plan["refused"]}
    assert [budgets[f"worker-coreml@{context}"]["sessions"] for context in ROLES["worker"][2]] == [137, 68, 34]


def test_a_role_that_cannot_fit_is_refused(shipped: Sandbox) -> None:
    path = shipped.root / "specs" / "examples" / "student-coreml-9b.yaml"
    path.write_text(path.read_text().replace("budget: {memory: 64GB}", "budget: {memory: 10GB}"))
    plan = shipped.json("plan", "student-coreml-9b")
    refused = {item["target"]: item for item in plan["refused"] if item["code"] == "E-BUDGET"}
    assert set(refused) == {"student-coreml-9b:worker-coreml@16384"}, "8.8 GB of weights and 1.6 GB of one session"
    assert "does not fit in 10.0 GB" in shipped.ok("plan", "student-coreml-9b")
