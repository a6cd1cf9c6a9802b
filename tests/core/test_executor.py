"""Stages run in child processes: measured, isolated, and their death explained."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.core import procfs
from ingot.core.executor import Executor, Outcome, environment
from ingot.core.store import Store
from ingot.errors import DiskFailed, IngotError, StageFailed


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


def test_a_killed_stage_fails_alone(executor: Executor, store: Store) -> None:
    with pytest.raises(StageFailed, match="killed by SIGKILL") as caught:
        run(executor, store, ["sh", "-c", "kill -9 $PPID; sleep 5"])
    assert caught.value.code == "E-STAGE-KILLED"
    _outcome, files = run(executor, store, ["sh", "-c", "echo on > {out}/x"])
    assert files == {"x": b"on\n"}


def test_a_dead_server_is_replaced(executor: Executor, store: Store) -> None:
    run(executor, store, ["sh", "-c", "echo 1 > {out}/x"])
    assert executor._server is not None
    os.kill(executor._server[0].pid, signal.SIGKILL)
    executor._server[0].wait()
    _outcome, files = run(executor, store, ["sh", "-c", "echo 2 > {out}/x"])
    assert files == {"x": b"2\n"}


def test_kill_all_ends_the_stage_with_everything_it_started(executor: Executor, store: Store) -> None:
    failure: list[IngotError] = []

    def job() -> None:
        try:
            run(executor, store, ["sh", "-c", "echo $$ > {scratch}/pid; sleep 60 & sleep 60"])
        except IngotError as error:
            failure.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    deadline = time.monotonic() + 10
    while not (pids := list((store.root / "staging").glob("*/scratch/pid"))) or not pids[0].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = procfs.descendants(int(pids[0].read_text()))
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


def test_a_full_disk_in_a_stage_has_its_own_code(executor: Executor, store: Store) -> None:
    with store.staging() as staging:
        job: dict[str, Any] = {
            "kind": "no_such_kind",
            "params": {},
            "seed": None,
            "threads": 1,
            "inputs": {},
            "digests": {},
            "sources": [],
            "out": str(staging.out),
            "scratch": str(staging.scratch / "missing"),
            "network": False,
            "preload": [],
        }
        with pytest.raises(DiskFailed) as caught:
            executor.run(json.loads(json.dumps(job)), store.root / "log.txt", staging.lock_fd, lambda _message: None)
    assert caught.value.code == "E-IO"
