"""Signals to ``doit`` and to commands while a stage runs, and to it: one message, no orphan, the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from projectkit import DOIT, Sandbox
from recordkit import audited, simple

_DEADLINE_S = 60.0
#: Notes its number, and ends at once when ``go`` is there; else it would run for a minute.
_SCRIPT = "[ -e {root}/go ] || {{ echo $$ > {{scratch}}/pid; exec sleep 61; }}; echo x > {{out}}/x"


def declare(sandbox: Sandbox) -> None:
    script = _SCRIPT.format(root=sandbox.root)
    sandbox.spec(f"targets:\n  t: {{kind: command, command: [sh, -c, {json.dumps(script)}]}}\n" + simple("u"))


@contextmanager
def at_work(sandbox: Sandbox, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A ``doit`` whose stage runs, and the number of that stage's program; both are gone at the end."""
    process = subprocess.Popen(
        [DOIT, *arguments],
        cwd=sandbox.root,
        env=sandbox.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + _DEADLINE_S
    pid = 0
    try:
        while not pid:
            found = [path.read_text() for path in sandbox.root.glob("cache/staging/*/scratch/pid")]
            pid = int(found[0]) if found and found[0].endswith("\n") else 0
            assert time.monotonic() < deadline, "the stage never ran"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process, pid
    finally:
        process.kill()
        process.wait()
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended(process: subprocess.Popen[str], pid: int, patience: float = 5) -> tuple[int, str]:
    """The exit code of a signalled ``doit`` and all that it said; its stage's program must be gone soon after it."""
    printed, complaint = process.communicate(timeout=_DEADLINE_S)
    deadline = time.monotonic() + patience
    while alive(pid):
        assert time.monotonic() < deadline, "an orphan: the stage's program lives on"
        time.sleep(0.02)
    assert "Traceback" not in printed + complaint
    return process.returncode, printed + complaint


def goes_on(sandbox: Sandbox, *arguments: str) -> None:
    """The same command completes, the audit is clean, and nothing is left behind."""
    (sandbox.root / "go").touch()
    sandbox.ok(*arguments)
    sandbox.ok()
    audit = audited(sandbox)
    assert (audit.problems, audit.notes) == ([], [])
    assert list((sandbox.root / "cache" / "staging").iterdir()) == []


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WHAT = "SIGINT once and twice, SIGTERM or SIGHUP while a stage runs, to doit and to commands"
#: A run, one that brings evicted bytes back, and a command that runs stages without doit.
COMMANDS = ((), ("materialize", "s:t"), ("reproduce", "s:t"))
ALL = [(arguments, number) for arguments in COMMANDS for number in _SIGNALS]
EVERYDAY, RARE = ALL[:1] + ALL[4:5] + ALL[6:8], ALL[1:4] + ALL[5:6] + ALL[8:]


def ready(sandbox: Sandbox, arguments: tuple[str, ...]) -> None:
    """A project in which the command has a stage to run."""
    declare(sandbox)
    go = sandbox.root / "go"
    if arguments:
        go.touch()
        sandbox.ok()
    if "materialize" in arguments:
        sandbox.ok("gc", "--newest", "0", "--drop", "s:t")
    go.unlink(missing_ok=True)


@pytest.mark.fault("C9", _WHAT)
@pytest.mark.parametrize(("arguments", "number"), EVERYDAY + [pytest.param(*it, marks=pytest.mark.slow) for it in RARE])
def test_a_signal(sandbox: Sandbox, arguments: tuple[str, ...], number: signal.Signals) -> None:
    ready(sandbox, arguments)
    with at_work(sandbox, *arguments) as (process, pid):
        process.send_signal(number)
        code, text = ended(process, pid)
    assert code == 128 + number, text
    assert text.count("interrupted") == 1, text
    goes_on(sandbox, *arguments)


@pytest.mark.fault("C9", _WHAT)
@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "a moment later"])
@pytest.mark.parametrize("arguments", [(), ("reproduce", "s:t")], ids=lambda arguments: " ".join(arguments) or "doit")
def test_ctrl_c_twice(sandbox: Sandbox, arguments: tuple[str, ...], pause: float) -> None:
    ready(sandbox, arguments)
    with at_work(sandbox, *arguments) as (process, pid):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        code, text = ended(process, pid)
    assert (code, text.count("interrupted")) == (130, 1), text
    goes_on(sandbox, *arguments)


@pytest.mark.fault("C9", "SIGPIPE: the reader of a command goes away at once")
@pytest.mark.parametrize("arguments", [("history",), ("show", "s:b", "--json"), ("plan",), ("audit",)], ids=" ".join)
def test_a_reader_that_goes_away(built_once: Sandbox, arguments: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as gone:
        done = subprocess.run(
            [DOIT, *arguments],
            cwd=built_once.root,
            env=built_once.env,
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.fault("C9", "a stage is killed as an exhausted memory does it: its program, or the process that runs it")
@pytest.mark.parametrize("victim", ["$$", "$PPID"], ids=["program", "stage"])
def test_a_killed_stage(sandbox: Sandbox, victim: str) -> None:
    script = f"[ -e {sandbox.root}/go ] || kill -9 {victim}; sleep 0.2; echo x > {{out}}/x"
    sandbox.spec(f"targets:\n  t: {{kind: command, command: [sh, -c, {json.dumps(script)}]}}\n" + simple("u"))
    done = sandbox.doit("-c")
    text = done.stdout + done.stderr
    assert done.returncode in (1, 2), text
    assert "Traceback" not in text
    assert "SIGKILL" in text or "signal 9" in text
    assert "built     s:u" in text, "the other one is built"
    assert not any((sandbox.root / "cache" / "objects").rglob("x"))
    goes_on(sandbox)


def test_what_runs_on_is_seen(sandbox: Sandbox) -> None:
    """The tooth of ``ended``: a program that outlives its run is an orphan."""
    declare(sandbox)
    with subprocess.Popen(["sleep", "62"]) as other, at_work(sandbox) as (process, _pid):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError, match="an orphan"):
            ended(process, other.pid, 0.2)
        other.kill()
