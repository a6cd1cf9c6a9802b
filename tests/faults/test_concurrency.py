"""Many processes in one folder: nothing lost or doubled, one builds while others wait, no lock outlives its holder."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import doitkit
from ingot.core import log_places, store
from ingot.core.locks import holder, is_held
from ingot.core.project import Project
from ingot.core.session import Session
from projectkit import DOIT, Sandbox
from recordkit import audited, registry_of, simple

PROCESSES = 32
#: What each process of ``test_many_publishers`` builds, half of which is everybody's: every day, and with ``-m slow``.
EVERYDAY, THOROUGH = 12, 30
_DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition that will come true."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came to this: {what}"
        time.sleep(0.02)


# --- N1: many publishers ---------------------------------------------------------------------------------------------


def names_of(process: int, half: int) -> list[str]:
    """What one process builds; it begins with the shared ones at another place than its neighbours."""
    shared = [f"s:shared{(process + number) % half}" for number in range(half)]
    own = [f"s:own{process}x{number}" for number in range(half)]
    return [name for pair in zip(shared, own, strict=True) for name in pair]


def publisher(root: Path, environment: dict[str, str], process: int, half: int) -> None:
    """Build the targets of one process, as ``doit`` does; note each one as it is acknowledged."""
    os.environ.update(environment)
    with doitkit.prepared(), (root / f"said-{process}").open("w") as said:
        session = Session(Project.open(root))
        names = names_of(process, half)
        session.selected = tuple(names)
        for name in names:
            if not session.up_to_date(name):
                session.execute(name)
            said.write(json.dumps([name, session.outcomes[name].receipt["digest"]]) + "\n")
        session.close()


@pytest.mark.fault("N1", "32 processes publish targets at once, half of them the same, while others audit")
@pytest.mark.parametrize("each", [EVERYDAY, pytest.param(THOROUGH, marks=pytest.mark.slow)])
def test_many_publishers(sandbox: Sandbox, cases: Callable[[int], None], each: int) -> None:
    half = each // 2
    names = [f"shared{number}" for number in range(half)]
    names += [f"own{process}x{number}" for process in range(PROCESSES) for number in range(half)]
    sandbox.spec("targets:\n" + "".join(simple(name, content=name) for name in names))
    assert doitkit.run(sandbox, "plan")[0] == 0
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=publisher, args=(sandbox.root, sandbox.env, n, half)) for n in range(PROCESSES)]
    for job in jobs:
        job.start()
    audits = 0
    while any(job.is_alive() for job in jobs):
        assert audited(sandbox).problems == []
        audits += 1
        time.sleep(0.2)
    assert [job.exitcode for job in jobs] == [0] * PROCESSES
    said = [json.loads(line) for path in sandbox.root.glob("said-*") for line in path.read_text().splitlines()]
    assert len(said) == PROCESSES * each
    builds = [entry for entry in registry_of(sandbox).entries() if entry.type == "build"]
    subjects = [entry.statement["subject"][0] for entry in builds]
    found = {str(subject["name"]): next(iter(subject["digest"].values())) for subject in subjects}
    assert Counter(subject["name"] for subject in subjects) == Counter(f"s:{name}" for name in names)
    assert dict(said) == found, "what was acknowledged is what the log holds"
    assert {entry.type for entry in registry_of(sandbox).entries()} == {"build", "origin"}
    audit = audited(sandbox)
    assert (audit.problems, audit.notes, audit.objects) == ([], [], len(names))
    assert audits >= 1
    assert "nothing to do" in doitkit.run(sandbox)[1]
    cases(PROCESSES * each)


# --- N2 to N5: whole processes ---------------------------------------------------------------------------------------


@dataclass
class Running:
    """A ``doit`` that runs, and the file in which its words are."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.output.read_text()

    def ended(self) -> int:
        """Its exit code, once it has one."""
        return self.process.wait(_DEADLINE_S)


@contextmanager
def started(sandbox: Sandbox, count: int, *arguments: str) -> Iterator[list[Running]]:
    """Several ``doit ARGUMENTS`` at once; whatever still runs at the end is killed."""
    runs = []
    for number in range(count):
        output = sandbox.root / f"said-{time.monotonic_ns()}-{number}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [DOIT, *arguments],
                cwd=sandbox.root,
                env=sandbox.env,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
        runs.append(Running(process, output))
    try:
        yield runs
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()


def gated(sandbox: Sandbox) -> None:
    """A target that notes that it runs and ends when the file ``go`` is there."""
    root = sandbox.root
    script = f"echo ran >> {root}/ran.txt; until [ -e {root}/go ]; do sleep 0.02; done; echo x > {{out}}/x"
    sandbox.spec(f"targets:\n  t: {{kind: command, command: [sh, -c, {json.dumps(script)}]}}\n")


def runs_of(sandbox: Sandbox) -> int:
    """How often the target of ``gated`` was begun."""
    path = sandbox.root / "ran.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def waits(run: Running) -> bool:
    """Whether a run has said that it waits for another one."""
    return "another ingot builds this target" in run.text


@pytest.mark.fault("N2", "several doit build the same target at once")
def test_one_builds_and_the_others_wait_and_hit(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    gated(sandbox)
    with started(sandbox, 4) as runs:
        until(lambda: sum(map(waits, runs)) == 3, "three of four wait")
        (builder,) = [run for run in runs if not waits(run)]
        assert all(f"process {builder.process.pid} on " in run.text for run in runs if run is not builder)
        (sandbox.root / "go").touch()
        assert [run.ended() for run in runs] == [0] * 4
        assert all("built by another process meanwhile" in run.text for run in runs if run is not builder)
    assert runs_of(sandbox) == 1
    assert [entry["type"] for entry in sandbox.entries()] == ["origin", "build"]
    assert sandbox.json("audit")["ok"]
    cases(4)


@pytest.mark.fault("N3", "the process that holds a build's lock is killed while another waits for it")
def test_a_killed_holder_gives_way_at_once(sandbox: Sandbox) -> None:
    gated(sandbox)
    with started(sandbox, 1) as (first,):
        until(lambda: runs_of(sandbox) == 1, "the first builds")
        with started(sandbox, 1) as (second,):
            until(lambda: waits(second), "the second waits")
            first.process.kill()
            until(lambda: runs_of(sandbox) == 2, "the second builds")
            (sandbox.root / "go").touch()
            assert second.ended() == 0
    assert [entry["type"] for entry in sandbox.entries()] == ["origin", "build"]
    # The killed one's stage may have died a moment after the second swept: the next build sweeps again.
    cache = store.Store(sandbox.root / "cache")
    until(lambda: cache.sweep_staging() or not list((cache.root / "staging").iterdir()), "nothing is left behind")
    assert list((cache.root / "staging").iterdir()) == []
    assert sandbox.json("audit")["ok"]


@pytest.mark.fault("N4", "the process that holds a lock is stopped")
def test_a_stopped_builder_is_named_to_those_who_wait(sandbox: Sandbox) -> None:
    gated(sandbox)
    with started(sandbox, 1) as (first,):
        until(lambda: runs_of(sandbox) == 1, "the first builds")
        first.process.send_signal(signal.SIGSTOP)
        with started(sandbox, 1) as (second,):
            until(lambda: waits(second), "the second waits")
            assert f"process {first.process.pid} on " in second.text
            assert ", and is stopped" in second.text
            (sandbox.root / "go").touch()
            first.process.send_signal(signal.SIGCONT)
            assert [first.ended(), second.ended()] == [0, 0]
    assert runs_of(sandbox) == 1


@contextmanager
def stopped_holder(path: Path) -> Iterator[int]:
    """A stopped process that holds the lock at ``path``; its number."""
    code = (
        "import sys, time; from pathlib import Path; from ingot.core import log_places\n"
        "with log_places.held(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.fault("N4", "the process that holds a lock is stopped")
@pytest.mark.parametrize("lock", ["registry", "pin", "index"])
def test_a_stopped_writer_makes_others_busy_and_no_longer(
    chain: Sandbox, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(log_places, "WAIT_S", 0.2)
    monkeypatch.setattr(store, "WAIT_S", 0.2)
    (origin,) = [path.name for path in (chain.root / "registry").iterdir()]
    path = {
        "registry": chain.root / "cache" / "registry.lock",
        "pin": chain.home / "state" / "ingot" / "pins" / f"{origin}.lock",
        "index": chain.root / "cache" / "locks" / "index.lock",
    }[lock]
    chain.spec("targets:\n" + simple("new", content="new"), "more")
    if lock == "index":
        (chain.root / "cache" / "index.json").unlink()
    with stopped_holder(path) as pid:
        code, text = doitkit.run(chain, "more")
        assert code == (3 if lock == "index" else 2)
        assert "E-BUSY: another process has been " in text
        assert f"held by process {pid} on " in text
        assert f"kill -CONT {pid}" in text
        if lock == "index":
            assert doitkit.run(chain, "plan")[0] == 6
    with doitkit.prepared():
        assert doitkit.run(chain, "more")[0] == 0, "its end sets the lock free"
    assert audited(chain).problems == []


@pytest.mark.fault("N5", "the builder is killed and a program that its stage started lives on")
def test_no_lock_outlives_the_builder(sandbox: Sandbox) -> None:
    root = sandbox.root
    lingering = f"setsid sh -c 'echo $$ > {root}/pid; exec sleep 600' & sleep 600"
    script = f"[ -e {root}/go ] || {{ {lingering}; }}; echo x > {{out}}/x"
    sandbox.spec(f"targets:\n  t: {{kind: command, command: [sh, -c, {json.dumps(script)}]}}\n")
    survivor = root / "pid"
    with started(sandbox, 1) as (first,):
        until(lambda: survivor.exists() and survivor.read_text().strip(), "its program runs")
        locks = sorted((root / "cache").rglob("*.lock"))
        assert any(is_held(lock) for lock in locks)
        first.process.kill()
        first.process.wait()
    pid = int(survivor.read_text())
    try:
        os.kill(pid, 0)
        until(lambda: not any(is_held(lock) for lock in locks), "every lock is free")
        (root / "go").touch()
        assert "built     s:t" in sandbox.ok()
        os.kill(pid, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert list((root / "cache" / "staging").iterdir()) == []


# --- N6: what a lock must not be -------------------------------------------------------------------------------------


@pytest.mark.fault("N6", "a lock file is replaced by a symbolic link")
@pytest.mark.parametrize("lock", ["build", "index", "registry", "pin", "staging"])
def test_a_link_in_the_place_of_a_lock_is_refused(chain: Sandbox, tmp_path: Path, lock: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    chain.spec("targets:\n" + simple("new", content="new"), "more")
    (origin,) = [path.name for path in (chain.root / "registry").iterdir()]
    (target,) = chain.json("plan", "more")["targets"]
    cache = chain.root / "cache"
    path = {
        "build": cache / "locks" / f"{target['key']}.lock",
        "index": cache / "locks" / "index.lock",
        "registry": cache / "registry.lock",
        "pin": chain.home / "state" / "ingot" / "pins" / f"{origin}.lock",
        "staging": cache / "staging" / "0123456789abcdef.lock",
    }[lock]
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with doitkit.prepared():
        code, text = doitkit.run(chain, "more")
        assert code == 2, text
        assert f"E-LINK: a symbolic link lies where a file of ingot's own belongs: {path}" in text
        assert victim.read_text() == "precious"
        assert os.stat(victim).st_nlink == 1
        path.unlink()
        assert doitkit.run(chain, "more")[0] == 0
    assert audited(chain).problems == []


def test_a_lock_says_who_holds_it_and_nothing_of_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.lock"
    assert holder(path) is None
    with log_places.held(path):
        found = holder(path)
        assert found is not None
        assert found.pid == os.getpid()
        assert not found.stopped
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.write_text(json.dumps({"pid": dead.pid, "host": found.host, "since": found.since}))
    assert holder(path) is None
    path.write_text(json.dumps({"pid": dead.pid, "host": "elsewhere", "since": found.since}))
    assert str(holder(path)) == f"process {dead.pid} on elsewhere since {found.since}"
    path.write_text("[]")
    assert holder(path) is None


def test_a_lock_that_cannot_say_who_holds_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "some.lock"
    monkeypatch.setattr(os, "pwrite", full)
    with log_places.held(path):
        assert is_held(path)
        assert holder(path) is None
    assert not is_held(path)


def test_a_lock_whose_file_was_removed_keeps_nobody_out_and_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    with log_places.held(path):
        path.unlink()
        with log_places.held(path):
            assert is_held(path)


# --- two in one folder -----------------------------------------------------------------------------------------------


@pytest.mark.fault("N2", "two doit -n 2 in one folder while plan, why and audit look on")
def test_two_runs_and_those_who_only_look(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    spec = "".join(simple(f"t{n}", content=f"t{n}", depends=f"t{n - 1}" if n % 3 else "") for n in range(9))
    sandbox.spec("targets:\n" + spec.replace("echo t", "sleep 0.1; echo t"))
    sandbox.spec("targets:\n" + simple("other", content="other").replace("echo o", "sleep 0.2; echo o"), "u")
    looks = 0
    with started(sandbox, 2, "-n", "2", "s") as same, started(sandbox, 1, "-n", "2", "u") as others:
        runs = [*same, *others]
        while any(run.process.poll() is None for run in runs):
            for arguments in (("plan",), ("why", "s:t8"), ("audit",), ("history",)):
                code, text = doitkit.run(sandbox, *arguments)
                assert (code, "Traceback" in text) == (0, False), (arguments, text)
                looks += 1
        assert [run.ended() for run in runs] == [0] * 3, [run.text for run in runs]
    builds = Counter(entry["target"] for entry in sandbox.entries("build"))
    assert builds == Counter([*(f"s:t{n}" for n in range(9)), "u:other"])
    assert {entry["type"] for entry in sandbox.entries()} == {"origin", "build"}
    assert set(sandbox.states().values()) == {"fresh"}
    audit = audited(sandbox)
    assert (audit.problems, audit.notes) == ([], [])
    cases(looks)
