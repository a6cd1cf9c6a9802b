"""The default spec on the real model: minutes, so marked slow. ``pytest -m slow tests/chain/test_default_spec.py``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from projectkit import REPO, Sandbox

pytestmark = pytest.mark.slow
SPEC = "smollm2-pydoc"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The default spec, built once."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("default"))
    shutil.copy(REPO / "specs" / f"{SPEC}.yaml", sandbox.root / "specs")
    done = sandbox.doit(timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return sandbox


def edited(sandbox: Sandbox, old: str, new: str) -> dict[str, str]:
    """The states after one edit of the spec, which is taken back."""
    path = sandbox.root / "specs" / f"{SPEC}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        return {name.partition(":")[2]: state for name, state in sandbox.states().items()}
    finally:
        path.write_text(text)


def test_the_second_run_does_nothing(built: Sandbox) -> None:
    before = len(built.entries())
    assert built.ok().startswith("nothing to do")
    assert len(built.entries()) == before


def test_an_edit_touches_what_it_should(built: Sandbox) -> None:
    fresh = edited(built, "# A real chat model", "# A remark about a chat model")
    assert set(fresh.values()) == {"fresh"}
    more = edited(built, "[Q8_0, Q4_K_M, Q4_0]", "[Q8_0, Q4_K_M, Q4_0, Q5_K_M]")
    stale = {name for name, state in more.items() if state != "fresh"}
    assert stale == {"gguf@Q5_K_M", "report.gguf@Q5_K_M", "report"}
    slower = edited(built, "learning_rate: 2e-4", "learning_rate: 1e-4")
    assert slower["adapter"] == "stale"
    kept = {name for name, state in slower.items() if state == "fresh"}
    assert kept == {"weights", "base", "dataset", "report.base", "report.base.logits"}
    assert set(edited(built, "seed: 7", "seed: 7 ").values()) == {"fresh"}


def test_the_record_verifies(built: Sandbox) -> None:
    audit = built.json("audit")
    assert audit["ok"], audit["problems"]
    assert audit["objects"] >= 10


def test_the_adapter_helps_for_certain_and_the_gates_pass(built: Sandbox) -> None:
    metric = built.json("show", f"{SPEC}:report.merged")["metrics"]["nll_difference"]
    assert metric["interval"][1] < 0
    (report,) = [item for item in built.json("plan")["targets"] if item["target"] == f"{SPEC}:report"]
    assert report["gate"] == "pass"


def test_llama_cpp_chats_with_the_result(built: Sandbox) -> None:
    assert "Paris" in built.ok("chat", f"{SPEC}:gguf@Q8_0", "What is the capital of France?", "--tokens", "40")


def test_no_artifact_holds_a_local_path(built: Sandbox) -> None:
    needles = [str(built.root).encode(), str(Path.home()).encode() + b"/"]
    for path in (built.root / "cache" / "objects").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [needle for needle in needles if needle in data], path


def test_the_log_is_plain_and_private(built: Sandbox) -> None:
    for log in (built.root / "registry").glob("*/log.jsonl"):
        for line in log.read_text().splitlines():
            assert json.loads(line)["_type"] == "https://in-toto.io/Statement/v1"
            assert not re.search(r"/(home|root|tmp|Users)/", line)
