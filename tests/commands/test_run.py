"""``doit`` refuses what is predicted not to fit before its first stage starts; ``--force`` builds all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from projectkit import Sandbox, counted
from recordkit import append, receipts

PETA = 10**15
Cases = Callable[[int], None]

DISK = pytest.mark.fault("D3", "a plan whose predicted bytes exceed the free disk")
MEMORY = pytest.mark.fault("D3", "a plan whose predicted memory exceeds what is available")


@pytest.fixture
def planned(sandbox: Sandbox) -> Sandbox:
    """a → b and c, built once, and asked for again with another content."""
    write(sandbox, "one")
    sandbox.ok()
    write(sandbox, "two")
    sandbox.ran()
    return sandbox


def write(sandbox: Sandbox, content: str) -> None:
    root = sandbox.root
    sandbox.spec(
        "targets:\n" + counted(root, "a", content=content) + counted(root, "b", depends="a") + counted(root, "c")
    )


def remember(sandbox: Sandbox, target: str, *, size: int | None = None, memory: int | None = None) -> None:
    """Have the log say, twice, that a target was of this size or took this much memory, outvoting the real build."""
    like = receipts(sandbox)[target]
    files = like["files"] if size is None else [{**like["files"][0], "size": size}]
    timings = like["timings"] if memory is None else {**like["timings"], "peak_anon_bytes": memory}
    for _ in range(2):
        append(sandbox, target, files=files, timings=timings)


def state(sandbox: Sandbox) -> tuple[list[str], int, list[Path]]:
    """What a refused run must leave as it is: what ran, the entries, the objects."""
    return sandbox.ran(), len(sandbox.entries()), sorted((sandbox.root / "cache" / "objects").rglob("*"))


@DISK
@pytest.mark.parametrize("options", [(), ("-n", "2"), ("-c",), ("-a",), ("s:b",), ("run",)], ids=" ".join)
def test_no_stage_starts_when_the_disk_will_not_suffice(
    planned: Sandbox, options: tuple[str, ...], cases: Cases
) -> None:
    remember(planned, "s:b", size=PETA)
    before = state(planned)
    done = planned.doit(*options)
    assert done.returncode == 2
    last = "s:c" if "-a" in options else "s:b"
    assert f"E-SPACE: the disk has too little room: with {last} cache/ grows by 1000.00 TB" in done.stdout
    assert "s:b: 1000.00 TB predicted from 3 builds with the same parameters" in done.stdout
    assert "build what fits: doit s:a" in done.stdout
    assert "doit --force builds all the same" in done.stdout
    assert done.stdout.count("hint:") == 1, "said at length once"
    assert "go on with the others" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert state(planned) == before
    cases(1)


@MEMORY
@pytest.mark.parametrize("options", [(), ("-n", "2"), ("s:b",)], ids=" ".join)
def test_no_stage_starts_when_memory_will_not_suffice(planned: Sandbox, options: tuple[str, ...], cases: Cases) -> None:
    remember(planned, "s:b", memory=PETA)
    before = state(planned)
    done = planned.doit(*options)
    assert done.returncode == 2
    assert "E-MEMORY: s:b needs 1000.00 TB of memory" in done.stdout
    assert state(planned) == before
    assert "E-MEMORY" in planned.ok("plan"), "a plan says so and is no judgement"
    cases(1)


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        (("--force",), ["a", "b"]),
        (("--force", "s:b"), ["a", "b"]),
        (("s:b", "--force"), ["a", "b"]),
        (("run", "--force", "-n", "2"), ["a", "b"]),
        (("-a", "--force"), ["a", "b", "c"]),
    ],
    ids=str,
)
def test_force_builds_all_the_same(planned: Sandbox, options: tuple[str, ...], ran: list[str]) -> None:
    remember(planned, "s:b", size=PETA, memory=PETA)
    planned.ok(*options)
    assert planned.ran() == ran
    assert receipts(planned)["s:b"]["predicted"]["bytes"] == PETA, "what was predicted is kept beside what was measured"


def test_what_fits_is_built_although_the_rest_does_not(planned: Sandbox) -> None:
    remember(planned, "s:b", size=PETA)
    planned.ok("s:a")
    assert planned.ran() == ["a"]
    assert planned.doit().returncode == 2


def test_what_is_fresh_needs_no_room(planned: Sandbox) -> None:
    planned.ok()
    remember(planned, "s:c", memory=PETA)
    write(planned, "three")
    planned.ok()
    assert planned.json("plan")["memory"]["needed_bytes"] is None, "nothing is left to build"


def test_what_is_fresh_counts_when_everything_is_built_again(planned: Sandbox) -> None:
    remember(planned, "s:c", memory=PETA)
    done = planned.doit("-a")
    assert done.returncode == 2
    assert "E-MEMORY: s:c needs" in done.stdout, "although s:a, which is stale, comes first"
    assert planned.ran() == []


def test_what_is_not_known_refuses_nothing(sandbox: Sandbox) -> None:
    write(sandbox, "one")
    assert sandbox.json("plan")["refused"] == []
    sandbox.ok()


def test_the_plan_shows_the_same_verdict(planned: Sandbox) -> None:
    remember(planned, "s:b", size=PETA)
    data = planned.json("plan")
    (refusal,) = data["refused"]
    assert (refusal["code"], refusal["target"]) == ("E-SPACE", "s:b")
    assert refusal["needed_bytes"] == data["disk"]["needed_bytes"] > PETA
    assert refusal["available_bytes"] == pytest.approx(data["disk"]["free_bytes"] - data["disk"]["reserve_bytes"])
    assert data["disk"]["at"] == ["s:b"]
    assert planned.json("plan", "s:a")["refused"] == []
    assert "doit would refuse: E-SPACE: the disk has too little room" in planned.ok("plan")


@pytest.fixture
def small(planned: Sandbox) -> Iterator[Sandbox]:
    """The same with ``cache/`` on a real file system of 4 MB."""
    cache, aside = planned.root / "cache", planned.root / "aside"
    cache.rename(aside)
    cache.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cache)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        shutil.copytree(aside, cache, symlinks=True, dirs_exist_ok=True)
        yield planned
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


@DISK
def test_a_real_small_disk_is_not_filled(small: Sandbox, cases: Cases) -> None:
    """A program that has copied 0.5 MB is asked to copy 4.5 MB onto a file system of 4 MB."""
    content = small.root / "specs" / "in.bin"
    small.spec("targets:\n  a: {kind: command, files: [in.bin], command: [cp, in.bin, '{out}/o']}\n")
    content.write_bytes(b"1" * 500_000)
    small.ok()
    content.write_bytes(b"2" * 4_500_000)
    done = small.doit()
    assert (done.returncode, "E-SPACE: the disk has too little room" in done.stdout) == (2, True)
    assert list((small.root / "cache" / "staging").iterdir()) == []
    forced = small.doit("--force")
    assert forced.returncode == 2
    assert "E-SPACE: the disk is full" in forced.stdout, "what was refused would indeed not have fitted"
    content.write_bytes(b"3" * 600_000)
    small.ok()
    cases(1)


def test_in_a_project_of_another_kind_the_command_is_doits(tmp_path: Path) -> None:
    other = Sandbox.make(tmp_path)
    (other.root / "dodo.py").write_text("def task_x():\n    return {'actions': ['echo hi'], 'verbosity': 2}\n")
    assert "hi" in other.ok()
    assert "hi" in other.ok("--force")
    assert "hi" in other.ok("-n", "2", "x")


def test_doits_own_options_work_and_wrong_ones_are_named(planned: Sandbox) -> None:
    assert "--force" in planned.ok("help", "run")
    done = planned.doit("--forse")
    assert done.returncode == 3
    assert "forse" in done.stderr
    planned.ok("-c", "-n", "2", "--verbosity", "2", "s:a")
    assert planned.ran() == ["a"]
