"""Real processes killed: at sampled system calls of ``doit``, and at every step of two publishes."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashlab import folder_in_memory
from projectkit import Sandbox
from recordkit import audited, registry_of, simple
from straced import Point, killed_at, points, require_strace

TESTS = Path(__file__).resolve().parent.parent
#: How many calls of each kind are sampled in the everyday run: more of those that decide.
SAMPLES = {"fsync": 9, "rename": 7, "write": 4, "mkdir": 5, "openat": 4, "close": 4, "newfstatat": 3}
OTHERS = 1


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with folder_in_memory(tmp_path) as folder:
        yield folder


def new(folder: Path) -> Sandbox:
    """a → b, not built."""
    folder.mkdir()
    sandbox = Sandbox.make(folder)
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    return sandbox


def said_built(printed: str) -> set[str]:
    return set(re.findall(r"^built +(\S+)", printed, re.MULTILINE))


def builds(sandbox: Sandbox) -> list[str]:
    """The targets of the builds in the log, in its order."""
    entries = [entry for entry in registry_of(sandbox).entries() if entry.type == "build"]
    return [entry.statement["subject"][0]["name"] for entry in entries]


@dataclass(frozen=True)
class Outcome:
    """How many builds a killed run had acknowledged, and what is wrong after it was run again."""

    acknowledged: int
    wrong: list[str]


def outcome(folder: Path, point: Point) -> Outcome | None:
    """Kill ``doit`` at a call and run it again; None when the kill came too late."""
    sandbox = new(folder)
    was_killed, printed = killed_at(sandbox, point, folder / "trace")
    if not was_killed:
        return None
    acknowledged = said_built(printed)
    logged = builds(sandbox)
    wrong = [f"lost: {name}" for name in acknowledged - set(logged)]
    found = audited(sandbox)
    # A commit that was not finished is a note, an object that no entry names yet is one too.
    wrong += [f"audit: {it.code} {it.where}: {it.detail}" for it in found.problems]
    wrong += [f"absent: {it.where}" for it in found.notes if it.code == "artifact_absent"]
    again = sandbox.doit()
    wrong += [f"doit: {again.returncode}: {again.stdout}{again.stderr}"] * bool(again.returncode)
    wrong += [f"built again: {name}" for name in said_built(again.stdout) & set(logged)]
    found = audited(sandbox)
    wrong += [f"audit afterwards: {it.code} {it.where}: {it.detail}" for it in [*found.problems, *found.notes]]
    wrong += [f"in the log: {builds(sandbox)}"] * (builds(sandbox) != ["s:a", "s:b"])
    wrong += [f"left over: {path.name}" for path in (sandbox.root / "cache" / "staging").iterdir()]
    return Outcome(len(acknowledged), [f"{point}: {text}" for text in wrong])


def try_all(base: Path, chosen: Iterable[Point]) -> list[Outcome]:
    """What came of each kill that was in time."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda item: outcome(base / str(item[0]), item[1]), enumerate(chosen))
        killed = [found for found in results if found is not None]
    print(f"{len(killed)} kills, {sum(found.acknowledged for found in killed)} acknowledged builds")
    return killed


def all_wrong(killed: Iterable[Outcome]) -> list[str]:
    return [text for found in killed for text in found.wrong]


@pytest.mark.fault("C1", "SIGKILL at a sampled system call of a two-target run")
def test_killed_at_sampled_system_calls(base: Path, cases: Callable[[int], None]) -> None:
    require_strace(base)
    chance = random.Random(3)
    by_call: dict[str, list[Point]] = {}
    for point in points(new(base / "clean"), base / "trace"):
        by_call.setdefault(point.call, []).append(point)
    chosen = [
        point
        for call, found in sorted(by_call.items())
        for point in chance.sample(found, min(SAMPLES.get(call, OTHERS), len(found)))
    ]
    killed = try_all(base, chosen)
    cases(len(killed))
    assert len(killed) >= 40
    assert sum(found.acknowledged for found in killed) >= 5, "or nothing could have been lost"
    assert all_wrong(killed) == []


#: Two checkpoints and their sum; every step is noted.
STEPS = """
for step in 1 2; do
  [ -e $1/$step ] || { echo $step >> $3/ran.txt; echo $step > $1/.new; mv $1/.new $1/$step; }
done
cat $1/1 $1/2 > $2/out.txt
"""


def resuming(folder: Path) -> Sandbox:
    """A target that leaves two checkpoints, not built."""
    folder.mkdir()
    sandbox = Sandbox.make(folder)
    sandbox.file("specs/steps.sh", STEPS)
    command = f'[sh, steps.sh, "{{checkpoints}}", "{{out}}", {sandbox.root}]'
    sandbox.spec(f"targets:\n  a: {{kind: command, command: {command}, files: [steps.sh]}}\n")
    return sandbox


def badly_resumed(folder: Path, point: Point) -> list[str] | None:
    """What is wrong after ``doit`` was killed at a call that concerns checkpoints; None when it came too late."""
    sandbox = resuming(folder)
    was_killed, _printed = killed_at(sandbox, point, folder / "trace")
    if not was_killed:
        return None
    logged = builds(sandbox)
    before = sandbox.ran()
    again = sandbox.doit()
    wrong = [f"doit: {again.returncode}: {again.stdout}{again.stderr}"] * bool(again.returncode)
    wrong += [f"ran before {before}, and again"] * bool(sandbox.ran() and logged)
    wrong += [f"in the log: {builds(sandbox)}"] * (builds(sandbox) != ["s:a"])
    wrong += ["other bytes"] * ((sandbox.root / "cache/latest/s/a/out.txt").read_text() != "1\n2\n")
    wrong += [f"left: {path}" for path in (sandbox.root / "cache" / "checkpoints").iterdir()]
    wrong += [f"audit: {it.code} {it.detail}" for it in audited(sandbox).problems]
    return [f"{point}: {text}" for text in wrong]


@pytest.mark.parametrize("most", [5, pytest.param(1000, marks=pytest.mark.slow)], ids=["everyday", "thorough"])
@pytest.mark.fault("C1", "SIGKILL at a system call that makes, names or drops a folder of checkpoints")
def test_killed_while_checkpoints_are_made_and_dropped(base: Path, cases: Callable[[int], None], most: int) -> None:
    require_strace(base)
    found = points(resuming(base / "clean"), base / "trace", "checkpoints")
    chosen = random.Random(5).sample(found, min(most, len(found)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda item: badly_resumed(base / str(item[0]), item[1]), enumerate(chosen)))
    killed = [wrong for wrong in results if wrong is not None]
    cases(len(killed))
    assert len(killed) >= min(most, 10) - 1
    assert [text for wrong in killed for text in wrong] == []


@pytest.mark.slow
@pytest.mark.fault("C1", "SIGKILL at every system call that touches the disk of a two-target run")
def test_killed_at_every_system_call(base: Path, cases: Callable[[int], None]) -> None:
    require_strace(base)
    killed = try_all(base, points(new(base / "clean"), base / "trace"))
    cases(len(killed))
    assert len(killed) >= 500
    assert sum(found.acknowledged for found in killed) >= 100, "or nothing could have been lost"
    assert all_wrong(killed) == []


@pytest.mark.fault("C1", "SIGKILL before every change of the disk in two publishes, in a real process")
def test_killed_at_every_step_of_two_publishes(base: Path, cases: Callable[[int], None]) -> None:
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, str(TESTS / "crashdriver.py"), str(base)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    cases(result["steps"])
    assert result["steps"] > 150
    assert result["wrong"] == []
