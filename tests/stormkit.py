"""A storm: eight builders in one project that are killed at random and started again, and ``gc`` among them.

Seven are forks of this process (starting Python is paid once), one is a whole ``doit`` with stages of its own. Each
round declares other content; a builder that is killed is started anew until it gets through. What a builder has
finished it says by one write, so that nothing half-said counts.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import doitkit
from ingot.core.gc import Policy, collect
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.core.statement import receipt_of
from ingot.errors import Busy
from projectkit import DOIT, Sandbox
from recordkit import audited, registry_of, simple

FORKED, REAL = 7, 1
#: Targets of the forked builders, every third of which is built from nothing; and of the whole ``doit``.
TARGETS, FEW = 9, 3
#: Seconds that a forked builder and a whole doit may live the first time in a round; longer each time.
_LIFE, _LONG_LIFE = 0.5, 2.0


def build(root: Path, environment: dict[str, str], seed: int, said: Path) -> None:
    """What ``doit s`` does, in another order for each seed; says each target once it is up to date."""
    os.environ.update(environment)
    rows = [[f"s:t{number + step}" for step in range(3)] for number in range(0, TARGETS, 3)]
    random.Random(seed).shuffle(rows)
    names = [name for row in rows for name in row]
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with doitkit.prepared():
        session = Session(Project.open(root))
        session.selected = tuple(names)
        for name in names:
            if not session.up_to_date(name):
                session.execute(name)
            receipt = session.outcomes[name].receipt
            os.write(descriptor, json.dumps([name, receipt["key"], receipt["digest"]]).encode() + b"\n")
        session.close()


def make_room(root: Path, environment: dict[str, str], newest: int) -> None:
    """What ``doit gc`` does, which gives way to who builds."""
    os.environ.update(environment)
    project = Project.open(root)
    try:
        collect(project, Policy(newest=newest))
    except Busy:
        return
    project.save()


@dataclass
class Storm:
    """What was done and said so far, and what was wrong."""

    sandbox: Sandbox
    chance: random.Random
    rounds: int = 0
    kills: int = 0
    started: int = 0
    collections: int = 0
    wrong: list[str] = field(default_factory=list)

    def declare(self) -> None:
        """Other content for all targets."""
        self.rounds += 1
        word = f"round{self.rounds}"
        targets = (simple(f"t{n}", content=f"{word}x{n}", depends=f"t{n - 1}" if n % 3 else "") for n in range(TARGETS))
        self.sandbox.spec("targets:\n" + "".join(targets))
        few = (simple(f"u{n}", content=f"{word}y{n}", depends=f"u{n - 1}" if n else "") for n in range(FEW))
        self.sandbox.spec("targets:\n" + "".join(few), "r")

    def round(self) -> None:
        """Declare, and kill and start builders until each has got through; ``gc`` begins with them."""
        self.declare()
        slots = [Slot(self, self._gc, _LIFE / 2)]
        slots += [Slot(self, self._fork, _LIFE) for _ in range(FORKED)]
        slots += [Slot(self, self._doit, _LONG_LIFE) for _ in range(REAL)]
        while slots:
            slots = [slot for slot in slots if not slot.through()]
            time.sleep(0.005)

    def _fork(self) -> Process:
        said = self.sandbox.root / f"said-{self.chance.randrange(8)}-{self.started}.jsonl"
        return self._forked(build, self.chance.randrange(1000), said)

    def _gc(self) -> Process:
        self.collections += 1
        return self._forked(make_room, self.chance.choice((0, 2, 20)))

    def _forked(self, what: Callable[..., None], *arguments: object) -> Process:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=what, args=(self.sandbox.root, self.sandbox.env, *arguments))
        process.start()
        return process

    def _doit(self) -> Process:
        path = self.sandbox.root / f"printed-{self.started}.txt"
        with path.open("wb") as file:
            return subprocess.Popen(
                [DOIT, "r"], cwd=self.sandbox.root, env=self.sandbox.env, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file,
            )  # fmt: skip

    def said(self) -> set[tuple[str, str]]:
        """(target, digest) of all that was acknowledged by forks, and (target, "") of what a ``doit`` has printed."""
        found = set()
        for path in self.sandbox.root.glob("said-*"):
            whole = path.read_text().rpartition("\n")[0]
            found |= {(name, digest) for name, _key, digest in map(json.loads, whole.splitlines())}
        for path in self.sandbox.root.glob("printed-*"):
            found |= {(name, "") for name in re.findall(r"^built +(\S+).*\n", path.read_text(), re.MULTILINE)}
        return found


Process = BaseProcess | subprocess.Popen[bytes]


@dataclass
class Slot:
    """One place in which a process runs, is killed and started anew, until one gets through."""

    storm: Storm
    start: Callable[[], Process]
    life: float
    process: Process | None = None
    until: float = 0
    is_through: bool = False

    def through(self) -> bool:
        """Look after it once; whether a process of it has got through."""
        if self.is_through:
            return True
        if self.process is None:
            self.storm.started += 1
            self.until = time.monotonic() + self.storm.chance.uniform(0, self.life)
            self.life *= 1.2
            self.process = self.start()
        elif _code(self.process) is not None:
            self._ended(_code(self.process))
        elif time.monotonic() > self.until:
            self.process.kill()
            self.storm.kills += 1
            self._wait()
        return False

    def _ended(self, code: int | None) -> None:
        self.is_through = True
        if code != 0:
            self.storm.wrong.append(f"a process ended by itself with {code}")
        self._wait()

    def _wait(self) -> None:
        process, self.process = self.process, None
        if isinstance(process, BaseProcess):
            process.join()
            process.close()
        elif process is not None:
            process.wait()


def _code(process: Process) -> int | None:
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()


def broken_laws(sandbox: Sandbox, said: set[tuple[str, str]]) -> list[str]:
    """What is wrong after a storm: lost, doubled, damaged, left behind; or the next run has something to do."""
    receipts = [receipt_of(entry.statement) for entry in registry_of(sandbox).entries() if entry.type == "build"]
    logged = {(str(it["target"]), str(it["digest"])) for it in receipts}
    known = logged | {(name, "") for name, _digest in logged}
    wrong = [f"lost: {name} {digest[:12]}" for name, digest in sorted(said - known)]
    # What was evicted and built again says so.
    by_key: dict[tuple[str, str], list[str]] = {}
    for it in receipts:
        if "observed" not in it:
            what = f"{it['digest'][:12]} {it['timings']['started']}–{it['timings']['finished']}"
            by_key.setdefault((str(it["target"]), str(it["key"])), []).append(what)
    wrong += [f"in the log {len(it)} times: {name}: {it}" for (name, _key), it in by_key.items() if it[1:]]
    again = sandbox.doit("s", "r")
    wrong += [f"the next run: {again.returncode}: {again.stdout}{again.stderr}"] * ("nothing to do" not in again.stdout)
    found = audited(sandbox)
    wrong += [f"audit: {it.code} {it.where}: {it.detail}" for it in found.problems]
    evicted = {path.name for path in (sandbox.root / "cache" / "evicted").glob("*")}
    notes = [it for it in found.notes if it.code != "artifact_absent" or it.where.rpartition("/")[2] not in evicted]
    wrong += [f"note: {it.code} {it.where}: {it.detail}" for it in notes]
    left = [*(sandbox.root / "cache" / "staging").iterdir(), *(sandbox.root / "registry").rglob("*.tmp-*")]
    return wrong + [f"left behind: {path}" for path in left]
