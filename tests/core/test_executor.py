"""Stages run in child processes: measured, isolated, and their death explained."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.core import procfs
from ingot.core.environment import environment
from ingot.core.executor import Executor, Outcome, _Run
from ingot.core.forkserver import Server
from ingot.core.store import Store
from ingot.errors import IngotError, StageFailed


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor()
    yield made
    made.close()


def run(
    executor: Executor, store: Store, command: list[str], *, network: bool = False, messages: list[Any] | None = None
) -> tuple[Outcome, dict[str, bytes]]:
    """One ``command`` job; its outcome and the files that it wrote."""
    with store.staging() as staging:
        job = {
            "kind": "command",
            "params": {"command": command},
            "seed": None,
            "threads": 2,
            "inputs": {},
            "digests": {},
            "sources": [],
            "out": str(staging.out),
            "scratch": str(staging.scratch),
            "network": network,
            "preload": ["ingot.stages.command"],
        }
        heard = [] if messages is None else messages
        outcome = executor.run(job, store.root / "log.txt", staging.lock_fd, heard.append)
        return outcome, {path.name: path.read_bytes() for path in staging.out.iterdir()}


def start_in_thread(executor: Executor, store: Store, script: str) -> tuple[threading.Thread, list[IngotError], int]:
    """Run a shell script as a job beside the test: its thread, the errors it will have met, the shell's pid."""
    failure: list[IngotError] = []

    def job() -> None:
        try:
            run(executor, store, ["sh", "-c", f"echo $$ > {{scratch}}/pid; {script}"])
        except IngotError as error:
            failure.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    deadline = time.monotonic() + 10
    while not (pids := list((store.root / "staging").glob("*/scratch/pid"))) or not pids[0].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return thread, failure, int(pids[0].read_text())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_a_job_returns_its_metrics_files_and_measurements(executor: Executor, store: Store) -> None:
    messages: list[Any] = []
    program = "import time; block = bytearray(200_000_000); time.sleep(0.4); open(r'{out}/x', 'w').write('hi')"
    outcome, files = run(executor, store, [sys.executable, "-c", program], messages=messages)
    assert files == {"x": b"hi"}
    assert outcome.metrics["bytes"]["value"] == 2
    assert outcome.peak_anon is not None
    assert 190_000_000 < outcome.peak_anon < 400_000_000
    assert outcome.peak_rss is not None
    assert outcome.peak_rss >= outcome.peak_anon
    assert outcome.cpu_s > 0
    assert {"t": "phase", "name": Path(sys.executable).name} in messages


def test_output_goes_to_the_log_and_not_to_the_screen(
    executor: Executor, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    run(executor, store, ["sh", "-c", "echo noise; echo more >&2; echo hi > {out}/x"])
    assert (store.root / "log.txt").read_text() == "noise\nmore\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.fault("S2", "secrets in the environment of whoever starts a stage")
def test_the_environment_is_fixed_and_holds_no_secret(
    executor: Executor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_CANARY", "s3cr3t")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    _outcome, files = run(executor, store, ["sh", "-c", "env > {out}/env"])
    assert b"s3cr3t" not in files["env"]
    assert b"hf_canary" not in files["env"]
    assert b"HF_HUB_OFFLINE=1" in files["env"]
    _outcome, files = run(executor, store, ["sh", "-c", "env > {out}/env"], network=True)
    assert b"s3cr3t" not in files["env"]
    assert b"hf_canary" in files["env"], "fetch gets the hub's settings"
    assert "SECRET_CANARY" not in environment(network=True)


@pytest.mark.fault("L2", "a stage looks for network interfaces and for a way out")
def test_a_stage_has_no_network_where_the_system_allows_it(executor: Executor, store: Store) -> None:
    program = "import os; print(sorted(os.listdir('/sys/class/net')), file=open(r'{out}/net', 'w'))"
    reach = "import socket; socket.create_server(('127.0.0.1', 0)).close()"
    outcome, _files = run(executor, store, [sys.executable, "-c", program + "\n" + reach])
    if outcome.network != "isolated":
        pytest.skip("this system grants no network namespace")
    with pytest.raises(StageFailed, match="status 1"):
        run(executor, store, [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 9), 2)"])
    assert "Network is unreachable" in (store.root / "log.txt").read_text()


def test_a_failing_program_is_named_with_its_status(executor: Executor, store: Store) -> None:
    with pytest.raises(StageFailed, match="sh ended with status 3") as caught:
        run(executor, store, ["sh", "-c", "exit 3"])
    assert caught.value.code == "E-COMMAND"


@pytest.mark.fault("C9", "SIGKILL of a stage or of the server that runs stages, as an exhausted memory does it")
def test_a_killed_stage_fails_alone(executor: Executor, store: Store) -> None:
    with pytest.raises(StageFailed, match="killed by SIGKILL") as caught:
        run(executor, store, ["sh", "-c", "kill -9 $PPID; sleep 5"])
    assert caught.value.code == "E-STAGE-KILLED"
    _outcome, files = run(executor, store, ["sh", "-c", "echo on > {out}/x"])
    assert files == {"x": b"on\n"}


@pytest.mark.fault("C9", "SIGKILL of a stage or of the server that runs stages, as an exhausted memory does it")
def test_a_dead_server_is_replaced(executor: Executor, store: Store) -> None:
    run(executor, store, ["sh", "-c", "echo 1 > {out}/x"])
    assert executor._server is not None
    os.kill(executor._server[0].pid, signal.SIGKILL)
    executor._server[0].wait()
    _outcome, files = run(executor, store, ["sh", "-c", "echo 2 > {out}/x"])
    assert files == {"x": b"2\n"}


def test_kill_all_ends_the_stage_with_everything_it_started(executor: Executor, store: Store) -> None:
    thread, failure, program = start_in_thread(executor, store, "sleep 60 & sleep 60")
    deadline = time.monotonic() + 10
    started = procfs.descendants(program)
    executor.kill_all()
    thread.join(10)
    assert [error.code for error in failure] == ["E-STAGE-KILLED"]
    assert len(started) >= 2
    while any(Path(f"/proc/{pid}").exists() and _state(pid) not in "ZX" for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


#: Runs a stage whose body is given, in this process, and prints the last message.
_HARNESS = """
import json, os, socket, sys, tempfile
from ingot.core import stage, worker
from ingot.core.stage import Metric
class Kind:
    @classmethod
    def model_validate_json(cls, text, strict): return cls()
    def run(self, given, out, progress):
        exec(sys.argv[1])
        return {{"m": eval(sys.argv[2])}}
stage.load_kind = lambda name: Kind
ours, theirs = socket.socketpair()
folder = tempfile.mkdtemp(dir=r"{folder}")
lists = dict.fromkeys(("sources",), []) | dict.fromkeys(("inputs", "digests", "params"), {{}})
worker.run_job(lists | dict(kind="k", seed=None, threads=1, out=folder, scratch=folder, network=False), theirs)
theirs.close()
print(ours.makefile().readlines()[-1].strip())
"""


def worker_says(tmp_path: Path, body: str, metric: str = "Metric(1, 'B', 'x')") -> dict[str, Any]:
    """The last message of a stage with this body."""
    program = _HARNESS.format(folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", program, body, metric], capture_output=True, text=True, check=False)
    message: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return message


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ("raise OSError(28, 'No space left on device', 'x')", "E-SPACE", "disk is full"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "E-SPACE", "disk is full"),
        ("raise OSError('cannot find the tokenizer of m')", "E-STAGE", "cannot find the tokenizer of m"),
        ("open('missing.json')", "E-STAGE", "missing.json"),
        ("raise ConnectionRefusedError(111, 'Connection refused')", "E-STAGE", "Connection refused"),
        ("sys.exit(0)", "E-STAGE", "SystemExit"),
        ("raise SystemExit('usage: tool')", "E-STAGE", "usage: tool"),
        ("raise KeyboardInterrupt", "E-STAGE", "KeyboardInterrupt"),
        ("raise MemoryError('7 GB')", "E-MEMORY", "7 GB"),
        ("raise ValueError('bad')", "E-STAGE", "ValueError: bad"),
    ],
)
def test_whatever_a_stage_raises_is_one_clear_error(tmp_path: Path, body: str, code: str, word: str) -> None:
    message = worker_says(tmp_path, body)
    assert message["t"] == "error"
    assert message["code"] == code
    assert word in message["what"]


@pytest.mark.parametrize(
    "metric",
    [
        "Metric(float('nan'), 'B', 'x')",
        "Metric(float('inf'), 'B', 'x')",
        "Metric(True, 'B', 'x')",
        "Metric('3', 'B', 'x')",
        "Metric(2**53, 'B', 'x')",
        "Metric(__import__('numpy').float32(0.5), 'B', 'x')",
        "Metric(1.0, 'B', 'x', n=float('nan'))",
        "Metric(1.0, 'B', 'x', interval=(0.0, float('nan')))",
        "Metric(1.0, None, 'x')",
    ],
)
def test_a_metric_that_is_no_number_is_refused(tmp_path: Path, metric: str) -> None:
    message = worker_says(tmp_path, "", metric)
    assert message["code"] == "E-METRIC"
    assert "'m'" in message["what"]


@pytest.mark.parametrize("value", ["0", "-1.5", "1e300", "2**53 - 1", "__import__('numpy').float64(0.5)"])
def test_other_numbers_are_metrics(tmp_path: Path, value: str) -> None:
    message = worker_says(tmp_path, "", f"Metric({value}, 'B', 'x', n=3, interval=(0, 1.5))")
    assert message["t"] == "result"
    assert message["outcomes"][0]["metrics"]["m"]["interval"] == [0, 1.5]


@pytest.mark.parametrize("network", [False, True])
def test_a_job_larger_than_any_socket_buffer_arrives(executor: Executor, store: Store, *, network: bool) -> None:
    text = "x" * 3_000_000
    command = [sys.executable, "-c", "open(r'{out}/x', 'w').write('on')", *[text[:60_000]] * 20]
    _outcome, files = run(executor, store, command, network=network)
    assert files == {"x": b"on"}


@pytest.mark.parametrize("network", [False, True])
def test_what_a_stage_leaves_running_ends_with_it(executor: Executor, store: Store, *, network: bool) -> None:
    started = time.monotonic()
    _outcome, files = run(executor, store, ["sh", "-c", "sleep 67 & echo $! > {out}/pid"], network=network)
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 5
    while _state(int(files["pid"])) not in "ZX":
        assert time.monotonic() < deadline, "the program lives on"
        time.sleep(0.02)


def test_a_listener_that_fails_ends_the_stage(executor: Executor, store: Store) -> None:
    class Broken(list[Any]):
        def append(self, _message: Any) -> None:
            raise BrokenPipeError("the screen is gone")

    with pytest.raises(BrokenPipeError):
        run(executor, store, ["sh", "-c", "sleep 68"], messages=Broken())
    assert executor._server is not None
    deadline = time.monotonic() + 5
    while len([pid for pid in procfs.descendants(executor._server[0].pid) if _state(pid) not in "ZX"]) > 1:
        assert time.monotonic() < deadline, "the stage lives on"
        time.sleep(0.02)


@pytest.mark.fault("C9", "SIGKILL of a stage or of the server that runs stages, as an exhausted memory does it")
def test_a_dead_server_leaves_no_program_behind(executor: Executor, store: Store) -> None:
    thread, failure, program = start_in_thread(executor, store, "sleep 69; true")
    deadline = time.monotonic() + 10
    assert executor._server is not None
    os.kill(executor._server[0].pid, signal.SIGKILL)
    thread.join(10)
    assert [error.code for error in failure] == ["E-STAGE-DIED"]
    while _state(program) not in "ZX":
        assert time.monotonic() < deadline, "the program lives on"
        time.sleep(0.02)


def test_a_message_that_was_cut_off_hides_no_end(executor: Executor, store: Store) -> None:
    ours, theirs = socket.socketpair()
    outcome = _Run(pid=0)
    theirs.sendall(b'{"t": "progress", "done": 1, "to\n{"t": "exit", "status": -9, "cpu": 0.5, "maxrss": 1}\n')
    theirs.close()
    with ours:
        executor._listen(ours, outcome, lambda _message: None, threading.Thread())
    assert outcome.exit is not None
    assert outcome.exit["status"] == -9


def test_many_jobs_leak_neither_descriptors_nor_processes(executor: Executor, store: Store) -> None:
    def descriptors() -> tuple[int, int]:
        assert executor._server is not None
        server = executor._server[0].pid
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server}/fd"))

    run(executor, store, ["sh", "-c", "echo > {out}/x"])
    before = descriptors()
    for _ in range(20):
        run(executor, store, ["sh", "-c", "echo > {out}/x"])
        with pytest.raises(StageFailed):
            run(executor, store, ["false"])
    assert descriptors() == before
    assert executor._server is not None
    assert procfs.descendants(executor._server[0].pid) == [executor._server[0].pid]


def test_a_process_that_cannot_be_made_fails_that_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    control, _other = socket.socketpair()
    server = Server(control)

    def fork() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    # The real server has one thread; whoever runs the tests may have more.
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with ours, theirs, control, _other, server._wake_read, server._wake_write:
        server._start(theirs, (0, 0))
        with ours.makefile("rb") as reader:
            messages = [json.loads(line) for line in reader]
    assert [message["t"] for message in messages] == ["error", "exit"]
    assert messages[0]["code"] == "E-STAGE-START"
