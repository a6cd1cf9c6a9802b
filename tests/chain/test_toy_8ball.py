"""The toy spec end to end: questions from templates → tokenizer → student → GGUF → answers that are counted.

The suite builds a smaller variant (fewer steps and questions, one type of one form). The whole of it, and the smaller
one killed in its training, are marked slow: ``pytest -m slow tests/chain/test_toy_8ball.py``.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from projectkit import DOIT, REPO, Sandbox

SPEC = "toy-8ball"
SMALL = """
format: 1
name: small
extends: toy-8ball.yaml
targets:
  student: {steps: 70, checkpoint_every: 0.2}
  gguf: {matrix: {type: [Q8_0]}}
  onnx: null
  coreml: null
  report: {from: {candidates: [gguf]}, documents: 8, answers: {documents: 60}, repeats: 1}
gates:
  report.student.pattern_accuracy: null
  report.gguf@F16.pattern_accuracy: null
  report.onnx.pattern_accuracy: null
  report.onnx.nll: null
  report.coreml.nll: null
  report.coreml.pattern_accuracy: null
  report.gguf@Q8_0.pattern_accuracy: {min: 0.6, bound: lower}
"""
TARGETS = {
    "questions", "tokenizer", "student", "gguf@Q8_0", "report.student.logits", "report.student", "report.gguf@Q8_0",
    "report",
}  # fmt: skip
#: What a change of the questions, of the training and of the measuring makes stale.
TRAINED = TARGETS - {"questions", "tokenizer"}
MEASURED = {"report.student", "report.gguf@Q8_0", "report"}


def toy(folder: Path) -> Sandbox:
    sandbox = Sandbox.make(folder)
    shutil.copy(REPO / "specs" / f"{SPEC}.yaml", sandbox.root / "specs")
    return sandbox


def killed_in_training(sandbox: Sandbox) -> None:
    """Start a build and end it with ``kill -9`` when the student has written its second checkpoint."""
    checkpoints = sandbox.root / "cache" / "checkpoints"
    with subprocess.Popen([DOIT, "small"], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.DEVNULL) as doit:
        deadline = time.monotonic() + 600
        while len(list(checkpoints.glob("*/*/step-*/state.json"))) < 2:
            assert doit.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        doit.send_signal(signal.SIGKILL)


def built(sandbox: Sandbox, *targets: str) -> str:
    """What a run printed that succeeded, however long it took."""
    done = sandbox.doit(*targets, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The small variant, built."""
    sandbox = toy(tmp_path_factory.mktemp("small"))
    sandbox.spec(SMALL, "small")
    built(sandbox, "small")
    return sandbox


def stale_after(sandbox: Sandbox, old: str, new: str) -> set[str]:
    """What is stale of the small variant after one edit of the spec that it extends; the edit is taken back."""
    path = sandbox.root / "specs" / f"{SPEC}.yaml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))
    try:
        states = {name.partition(":")[2]: state for name, state in sandbox.states().items() if name.startswith("small")}
        assert set(states) == TARGETS
        return {name for name, state in states.items() if state != "fresh"}
    finally:
        path.write_text(text)


def metric(sandbox: Sandbox, target: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.json("show", target)["metrics"][name]
    return found


def test_the_answers_are_right_and_the_gate_says_so(small: Sandbox) -> None:
    right = metric(small, "small:report.gguf@Q8_0", "pattern_accuracy")
    assert right["n"] == 60
    assert right["interval"][0] > 0.6 > 1 / 3, "one mood for everything would be right in one of three"
    assert metric(small, "small:report.gguf@Q8_0", "answers_ended")["value"] == 1
    (report,) = [item for item in small.json("plan")["targets"] if item["target"] == "small:report"]
    assert report["gate"] == "pass"
    assert "right %" in small.ok("report", "small:report")


def test_a_gate_that_is_missed_fails_the_build(small: Sandbox) -> None:
    text = SMALL + "  report.gguf@Q8_0.exact_match: {min: 0.99}\n"
    try:
        small.spec(text, "small")
        done = small.doit("small")
        assert done.returncode == 1
        assert re.search(r"gate FAIL.*exact_match", done.stdout), done.stdout
    finally:
        small.spec(SMALL, "small")


def test_the_second_run_does_nothing(small: Sandbox) -> None:
    before = len(small.entries())
    assert small.ok("small").startswith("nothing to do")
    assert len(small.entries()) == before


def test_an_edit_touches_what_it_should(small: Sandbox) -> None:
    assert stale_after(small, "# When something", "# If something") == set()
    assert "questions" in stale_after(small, "- find my keys", "- find the keys")
    assert "questions" in stale_after(small, "To my eyes, yes.", "In my eyes, yes.")
    assert stale_after(small, "learning_rate: 5e-3", "learning_rate: 4e-3") == TRAINED
    assert stale_after(small, "max_tokens: 24", "max_tokens: 25") == MEASURED
    assert stale_after(small, "pattern_accuracy: {min: 0.95}", "pattern_accuracy: {min: 0.96}") == set()


def test_the_record_verifies(small: Sandbox) -> None:
    audit = small.json("audit")
    assert audit["ok"], audit["problems"]
    assert list((small.root / "cache" / "staging").iterdir()) == []
    assert not list((small.root / "cache").glob("checkpoints/*"))


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """The student is then built once more, from its beginning; what follows from it stays as it is."""
    sandbox = toy(tmp_path)
    sandbox.spec(SMALL, "small")
    killed_in_training(sandbox)
    assert not [entry for entry in sandbox.entries("build") if entry["target"] == "small:student"]
    built(sandbox, "small")
    shown = sandbox.json("show", "small:student")
    assert shown["notes"]["resumed_from_step"] > 0
    sandbox.ok("forget", "small:student")
    again, said = built(sandbox, "small"), sandbox.json("show", "small:student")
    assert "resumed_from_step" not in said["notes"]
    assert said["digest"] == shown["digest"]
    assert said["observed"]["agrees"] is True
    assert re.findall(r"^built +(\S+)", again, re.MULTILINE) == ["small:student"]


@pytest.mark.slow
def test_the_whole_spec(tmp_path: Path) -> None:
    sandbox = toy(tmp_path)
    built(sandbox)
    assert sandbox.ok().startswith("nothing to do")
    for candidate in ("student", "gguf@F16", "gguf@Q8_0", "onnx", "coreml"):
        right = metric(sandbox, f"{SPEC}:report.{candidate}", "pattern_accuracy")
        assert right["n"] == 100
        assert right["interval"][0] > 0.95
    assert 550_000 < metric(sandbox, f"{SPEC}:student", "parameters")["value"] < 650_000
    assert metric(sandbox, f"{SPEC}:gguf@Q8_0", "fallback_tensors")["value"] == 0
    assert sandbox.json("audit")["ok"]
    said = sandbox.ok("chat", f"{SPEC}:gguf@Q8_0", "Will I win a prize next month?").strip()
    text = (sandbox.root / "specs" / f"{SPEC}.yaml").read_text()
    answers = text.partition("affirmative:")[2].partition("noncommittal:")[0]
    assert said in answers, said
