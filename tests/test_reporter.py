"""What ``doit`` prints: to a pipe, to a terminal of 80 columns, when it fails, when it is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from ingot.view.text import cells
from projectkit import DOIT, Sandbox

TIME = re.compile(r"\d+(\.\d+)? s\b|\d+m \d\ds")
PEAK = re.compile(r"  peak [\d.]+ .?B$", re.MULTILINE)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def target(name: str, script: str, after: str = "") -> str:
    source = f"from: {{data: {after}}}, " if after else ""
    return f"  {name}: {{kind: command, {source}command: [sh, -c, {json.dumps(script)}]}}\n"


@pytest.fixture
def two(sandbox: Sandbox) -> Sandbox:
    """s:a → s:b."""
    sandbox.spec("targets:\n" + target("a", "echo 1 > {out}/a.txt") + target("b", "echo 22 > {out}/b.txt", "a"))
    return sandbox


def steady(output: str) -> list[str]:
    """Lines with what differs from run to run made equal."""
    return PEAK.sub("", TIME.sub("T", output)).splitlines()


def test_a_pipe_gets_these_lines_and_no_others(two: Sandbox) -> None:
    assert steady(two.ok()) == [
        "start     s:a  command  never built",
        "built     s:a   T      2 B",
        "start     s:b  command  never built",
        "built     s:b   T      3 B",
        "",
        "target  size  path",
        "s:a      2 B  cache/latest/s/a/a.txt",
        "s:b      3 B  cache/latest/s/b/b.txt",
        "",
        "what was measured, and how  doit show s:b",
        "how it came to be           doit history s",
        "",
        "2 built in T",
    ]


def test_the_second_run_is_one_line(two: Sandbox) -> None:
    two.ok()
    assert steady(two.ok()) == ["nothing to do: 2 targets fresh (T)"]


def test_the_paths_and_commands_of_the_closing_page_are_real(two: Sandbox) -> None:
    output = two.ok()
    for path in re.findall(r"cache/latest/\S+", output):
        assert (two.root / path).exists()
    commands = re.findall(r"doit ((?:show|history) \S+)", output)
    assert len(commands) == 2
    for command in commands:
        two.ok(*command.split())


def test_what_is_put_back_is_called_restored(two: Sandbox) -> None:
    two.ok()
    text = (two.root / "specs" / "s.yaml").read_text()
    two.spec(text.replace("echo 22", "echo 333"))
    output = two.ok()
    assert "because" not in output, "the start line has said why"
    assert output.count("echo 333") == 1
    two.spec(text)
    assert "restored  s:b               3 B  found again, built " in two.ok()


def test_a_result_of_another_target_is_named_with_it(two: Sandbox) -> None:
    two.ok("s:a")
    two.spec((two.root / "specs" / "s.yaml").read_text().replace("name: s\n", "name: twin\n"), name="twin")
    (line,) = (line for line in two.ok("twin:a").splitlines() if line.startswith("restored"))
    assert line.endswith(" as s:a")


def test_the_start_line_counts_what_else_changed(two: Sandbox) -> None:
    two.ok()
    text = (two.root / "specs" / "s.yaml").read_text()
    two.spec(text.replace("echo 22", "echo 333").replace("echo 1", "echo 1111"))
    (line,) = (line for line in two.ok().splitlines() if line.startswith("start     s:b"))
    assert line.endswith("(+1 more)")


def test_a_project_without_specs_says_what_to_do(sandbox: Sandbox) -> None:
    assert sandbox.ok() == sandbox.ok("plan") == "no specs: doit new NAME writes a first one\n"


def test_what_another_process_built_meanwhile_is_said(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + target("a", "sleep 3; echo > {out}/a"))
    first = subprocess.Popen([DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.PIPE, text=True)
    locks = sandbox.root / "cache" / "locks"
    until = time.monotonic() + 20
    while not (locks.is_dir() and list(locks.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    lines = steady(sandbox.ok())
    first.communicate(timeout=30)
    assert lines[-2:] == [
        "fresh     s:a  built by another process meanwhile",
        "nothing to do: 1 target fresh (T, 1 of them built by another process meanwhile)",
    ]


def test_a_failure_is_said_once_with_code_and_log(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + target("a", "echo noise; exit 3") + target("b", "true", "a"))
    done = sandbox.doit()
    assert done.returncode == 1
    assert steady(done.stdout) == [
        "start     s:a  command  never built",
        "failed    s:a  E-COMMAND: sh ended with status 3",
        "          | noise",
        "          log: cache/logs/s/a.log",
        "",
        "what is left, and why  doit plan",
        "",
        "1 failed, 1 not looked at in T",
    ]
    assert done.stderr == ""
    assert "noise" in (sandbox.root / "cache" / "logs" / "s" / "a.log").read_text()


def test_what_can_be_built_in_spite_of_a_failure_is_offered(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + target("a", "exit 3") + target("b", "true", "a") + target("c", "echo > {out}/c"))
    lines = steady(sandbox.doit().stdout)
    assert lines[-1] == "1 failed, 2 not looked at in T"
    assert "go on with the others  doit -c" in lines


def test_with_continue_what_needs_the_failed_one_is_skipped(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + target("a", "exit 3") + target("b", "true", "a") + target("c", "echo > {out}/c"))
    lines = steady(sandbox.doit("-c").stdout)
    assert "skipped   s:b  needs s:a" in lines
    assert lines[-1] == "1 failed, 1 skipped, 1 built in T"
    assert sum("E-COMMAND" in line for line in lines) == 1


def test_a_gate_that_fails_is_judged_on_the_closing_page_and_again_when_all_is_fresh(two: Sandbox) -> None:
    text = (two.root / "specs" / "s.yaml").read_text()
    two.spec(text + "gates:\n  b.bytes: {max: 1}\n  a.bytes: {max: 5}\n")
    for word in ("built", "fresh"):
        done = two.doit()
        assert done.returncode == 1
        lines = steady(done.stdout)
        assert "failed    s:b  E-GATE: 1 of 1 gates of s:b do not pass" in lines
        assert lines.count("gate FAIL     3, needs ≤ 1  b.bytes") == 1
        assert lines.count("gate pass     2, needs ≤ 5  a.bytes") == 1
        assert sum("b.bytes" in line or "FAIL" in line for line in lines) == 1, "the limit is said once"
        assert any(word in line for line in lines)


def test_what_is_built_from_a_target_whose_gate_fails_is_built(two: Sandbox) -> None:
    """Without ``-c`` too: a report that one candidate's gate kept back would say nothing of any."""
    text = (two.root / "specs" / "s.yaml").read_text()
    two.spec(text + "gates:\n  a.bytes: {max: 1}\n")
    for last in ("1 failed, 1 built in T", "1 failed, 1 fresh in T"):
        done = two.doit()
        assert done.returncode == 1
        lines = steady(done.stdout)
        assert "failed    s:a  E-GATE: 1 of 1 gates of s:a do not pass" in lines
        assert lines[-1] == last
    assert [entry["target"] for entry in two.entries("build")] == ["s:a", "s:b"]


def test_gates_that_pass_are_listed_when_nothing_is_to_be_done(two: Sandbox) -> None:
    text = (two.root / "specs" / "s.yaml").read_text()
    two.spec(text + "gates:\n  b.bytes: {max: 3}\n")
    two.ok()
    assert steady(two.ok()) == ["nothing to do: 2 targets fresh (T)", "gate pass     3, needs ≤ 3  b.bytes"]


def test_a_run_with_nothing_to_do_does_not_import_rich(two: Sandbox) -> None:
    two.ok()
    code = (
        "import atexit, sys; from doit.doit_cmd import DoitMain;"
        "atexit.register(lambda: print('rich' in sys.modules));"
        "sys.exit(DoitMain().run([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=two.root, env=two.env, capture_output=True, text=True, check=True
    )
    assert steady(done.stdout) == ["nothing to do: 2 targets fresh (T)", "False"]
    # The same on a terminal.
    output, code_ = on_terminal([sys.executable, "-c", code], two.root, two.env, 80)
    assert code_ == 0
    assert "False" in output
    assert "True" not in output


# --- signals -------------------------------------------------------------------------------------------------


def start_and_wait(sandbox: Sandbox, *arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    """``doit`` with a target that sleeps; returns once the program has written the ids of its processes."""
    note = f"{sandbox.root}/pids"
    script = f"sleep 60 & echo $$ $! > {note}.tmp; mv {note}.tmp {note}; wait; echo > {{out}}/y"
    sandbox.spec("targets:\n" + target("fast", "echo > {out}/x") + target("slow", script, "fast"))
    process = subprocess.Popen(
        [DOIT, *arguments], cwd=sandbox.root, env=sandbox.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, wait_for_pids(sandbox)


def wait_for_pids(sandbox: Sandbox) -> list[int]:
    deadline = time.monotonic() + 30
    while not (sandbox.root / "pids").exists():
        assert time.monotonic() < deadline, "the target did not start"
        time.sleep(0.02)
    return [int(pid) for pid in (sandbox.root / "pids").read_text().split()]


def assert_all_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.fault("C9", "SIGINT, SIGTERM or SIGHUP while a stage runs")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_all_with_one_line(
    sandbox: Sandbox, number: signal.Signals, status: int, arguments: tuple[str, ...]
) -> None:
    process, pids = start_and_wait(sandbox, *arguments)
    helpers = children_of(process.pid)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors == ""
    assert output.splitlines()[-2:] == [
        "start     s:slow  command  never built",
        "interrupted: what was finished is kept; run doit again to go on",
    ]
    assert_all_gone(pids + helpers)
    sandbox.file("specs/s.yaml", (sandbox.root / "specs" / "s.yaml").read_text().replace("sleep 60", "sleep 0"))
    assert "1 built, 1 fresh" in sandbox.ok()


# --- a terminal ----------------------------------------------------------------------------------------------


def on_terminal(
    command: list[str], folder: Path, env: Mapping[str, str], columns: int, *, interrupt_at: str = ""
) -> tuple[str, int]:
    """Run on a terminal of that many columns; gives everything written to it, and the status."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=folder, env={**env, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    output = b""
    for piece in read_all(ours):
        output += piece
        if interrupt_at and interrupt_at.encode() in output:
            interrupt_at = ""
            process.send_signal(signal.SIGINT)
    os.close(ours)
    return output.decode(), process.wait(20)


def read_all(descriptor: int) -> Iterator[bytes]:
    with suppress(OSError):  # Linux answers EIO once the other end is closed
        while piece := os.read(descriptor, 65536):
            yield piece


def test_on_80_columns_nothing_wraps_and_the_cursor_comes_back(sandbox: Sandbox) -> None:
    long = "a-target-with-a-rather-long-name-to-show"
    sandbox.spec(
        "targets:\n" + target(long, "sleep 0.5; echo > {out}/x") + target("b", "sleep 0.5; echo > {out}/y", long)
    )
    output, status = on_terminal([DOIT], sandbox.root, sandbox.env, 80)
    assert status == 0
    lines = re.split(r"[\r\n]+", ESCAPE.sub("", output).strip())
    assert max(map(cells, lines)) <= 80
    assert sum(line.startswith("built     s:b ") for line in lines) == 1
    assert "1 running" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert lines[-1].startswith("2 built in ")


def test_no_color_leaves_no_colour(two: Sandbox) -> None:
    output, status = on_terminal([DOIT], two.root, {**two.env, "NO_COLOR": "1"}, 80)
    assert status == 0
    assert re.search(r"\x1b\[[0-9;]*m", output) is None


def test_an_interrupt_on_a_terminal_gives_the_cursor_back(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + target("slow", "sleep 60"))
    output, status = on_terminal([DOIT], sandbox.root, sandbox.env, 80, interrupt_at="1 running")
    assert status == 130
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert output.rstrip().endswith("interrupted: what was finished is kept; run doit again to go on")
    assert output.count("interrupted") == 1
