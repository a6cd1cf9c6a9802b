"""``kill -9`` at random moments: what was acknowledged is kept, the next run goes on, ``doit audit`` is clean."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from projectkit import DOIT, Sandbox

TARGETS = 8


def write_spec(sandbox: Sandbox) -> None:
    text = "targets:\n"
    for number in range(TARGETS):
        script = f"echo t{number} >> {sandbox.root}/ran.txt; sleep 0.05; head -c 300000 /dev/zero > {{out}}/x"
        source = f", from: {{data: t{number - 1}}}" if number % 4 else ""
        text += f"  t{number}: {{kind: command, command: [sh, -c, '{script}'], env: {{N: '{number}'}}{source}}}\n"
    sandbox.spec(text)


def killed(sandbox: Sandbox, seconds: float) -> set[str]:
    """Start ``doit``, kill it after some time; the targets that it had said are built."""
    process = subprocess.Popen(
        [DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    printed, _nothing = process.communicate(timeout=30)
    return set(re.findall(r"^built +(\S+)", printed, re.MULTILINE))


@pytest.mark.fault("C1", "SIGKILL at a random moment of an eight-target run")
@pytest.mark.parametrize("seed", range(3))
def test_kill_at_random_moments(sandbox: Sandbox, seed: int, cases: Callable[[int], None]) -> None:
    write_spec(sandbox)
    cases(4)
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(4):
        acknowledged |= killed(sandbox, 0.2 + chance.random() * 0.8)
        logged = {entry["target"] for entry in sandbox.entries("build")}
        assert acknowledged <= logged, "what was said to be built is in the log"
        states = sandbox.states()
        assert {states[name] for name in acknowledged} <= {"fresh"}
    sandbox.ran()
    sandbox.ok()
    again = {f"s:{name}" for name in sandbox.ran()}
    assert not again & acknowledged, "nothing acknowledged is built again"
    assert set(sandbox.states().values()) == {"fresh"}
    audit = sandbox.json("audit")
    assert audit["ok"], audit["problems"]
    assert len(sandbox.entries("build")) == TARGETS
    assert list((sandbox.root / "cache" / "staging").iterdir()) == []


@pytest.mark.fault("C8", "SIGKILL of the builder while a stage's program runs")
def test_no_stage_outlives_a_killed_builder(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  t: {kind: command, command: [sh, -c, 'echo $$ > {scratch}/pid; sleep 61']}\n")
    noise = sandbox.root / "noise.txt"
    with noise.open("w") as file:
        process = subprocess.Popen([DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.DEVNULL, stderr=file)
    deadline = time.monotonic() + 30
    while not (found := list(sandbox.root.glob("cache/staging/*/scratch/pid"))) or not found[0].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid = int(found[0].read_text())
    process.kill()
    process.wait()
    while _alive(pid):
        assert time.monotonic() < deadline, "the stage's program lives on"
        time.sleep(0.02)
    time.sleep(0.3)
    assert noise.read_text() == "", "the server that ran the stage ends in silence"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.fault("C9", "SIGINT, SIGTERM or SIGHUP while a stage runs")
def test_ctrl_c_ends_the_run_with_one_line_and_130(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  t: {kind: command, command: [sh, -c, 'echo > {scratch}/on; sleep 62']}\n")
    process = subprocess.Popen(
        [DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 30
    while not list(sandbox.root.glob("cache/staging/*/scratch/on")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    printed, _nothing = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("interrupted")]) == 1
    assert sandbox.json("audit")["ok"]


@pytest.mark.fault("C9", "SIGPIPE: whoever reads the output goes away while a stage runs")
def test_a_reader_that_goes_away_harms_nothing(sandbox: Sandbox) -> None:
    slow = "{kind: command, command: [sh, -c, 'sleep 0.3; echo 1 > {out}/x'], env: {N: 'NAME'}"
    lines = [f"  {name}: {slow.replace('NAME', name)}}}\n" for name in "abc"]
    sandbox.spec("targets:\n" + "".join(lines))
    process = subprocess.Popen(
        [DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=30)
    sandbox.ok()
    assert set(sandbox.states().values()) == {"fresh"}
    assert len(sandbox.entries("build")) == 3
    audit = sandbox.json("audit")
    assert (audit["ok"], audit["notes"]) == (True, [])
    assert list((sandbox.root / "cache" / "staging").iterdir()) == []
