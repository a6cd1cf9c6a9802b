"""Real commands killed at system calls: ``gc``, ``promote``, ``materialize``, ``reproduce``, ``registry export``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashlab import folder_in_memory
from ingot.core.log import logs_in
from projectkit import Sandbox
from recordkit import audited, copied, registry_of, simple, store_of
from straced import Point, killed_at, points, require_strace

#: A kill leaves these, and the next command clears them up; an evicted artifact stays absent.
_LEFT = ("unsigned_tail", "object_unnamed", "artifact_unprotected", "derived_unsealed")


@dataclass(frozen=True)
class Command:
    """A command, what is done before it, and how it may end when it is given once more."""

    arguments: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    again: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return " ".join(self.arguments[:2])


GC = Command(("gc", "--newest", "0", "--drop", "s:a"))
COMMANDS = (
    GC,
    Command(("promote", "s")),
    # Of what is there already it says that it need not be asked.
    Command(("materialize", "s:a"), (GC.arguments,), (0, 3)),
    Command(("reproduce", "s")),
    Command(("registry", "export", "exported")),
)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with folder_in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Two builds of ``b``, the first of which is in force no more."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("commands"))
    for word in ("x", "y"):
        sandbox.spec("targets:\n" + simple("a") + simple("b", content=word, depends="a"))
        sandbox.ok()
    return sandbox


def new(template: Sandbox, folder: Path, command: Command) -> Sandbox:
    folder.mkdir()
    sandbox = copied(template, folder)
    for arguments in command.before:
        sandbox.ok(*arguments)
    return sandbox


def lines(sandbox: Sandbox) -> list[bytes]:
    return [line for log in logs_in(sandbox.root / "registry") for line in log.scan()]


def broken_laws(sandbox: Sandbox, command: Command, before: list[bytes]) -> list[str]:
    """What is wrong after a command was killed, and after it was given again."""
    wrong = ["entries are lost"] * (lines(sandbox)[: len(before)] != before)
    wrong += problems(sandbox, _LEFT)
    again = sandbox.doit(*command.arguments)
    wrong += [f"again: {again.returncode}: {again.stdout}{again.stderr}"] * (again.returncode not in command.again)
    run = sandbox.doit()
    wrong += [f"doit: {run.returncode}: {run.stdout}{run.stderr}"] * ("nothing to do" not in run.stdout)
    wrong += [f"afterwards: {text}" for text in problems(sandbox, ())]
    left = [*(sandbox.root / "cache" / "staging").iterdir(), *(sandbox.root / "cache").glob("trash/*")]
    left += [path for place in ("registry", "exported") for path in (sandbox.root / place).rglob("*.tmp-*")]
    left += [path for path in (sandbox.root / "cache").glob("latest/*/*") if not path.exists()]
    return wrong + [f"left: {path.relative_to(sandbox.root)}" for path in left]


def problems(sandbox: Sandbox, expected: tuple[str, ...]) -> list[str]:
    found, store = audited(sandbox), store_of(sandbox)
    notes = [it for it in found.notes if it.code not in expected]
    notes = [it for it in notes if it.code != "artifact_absent" or not store.is_evicted(it.where.rpartition("/")[2])]
    return [f"audit: {it.code} {it.where}: {it.detail}" for it in [*found.problems, *notes]]


def tried(template: Sandbox, folder: Path, command: Command, point: Point) -> list[str] | None:
    """What is wrong after a kill at a call; None when it came too late."""
    sandbox = new(template, folder, command)
    before = lines(sandbox)
    if not killed_at(sandbox, point, folder / "trace", command.arguments)[0]:
        return None
    return [f"{point}: {text}" for text in broken_laws(sandbox, command, before)]


_SLOW = [pytest.param(command, 10_000, marks=pytest.mark.slow, id=f"{command}, every call") for command in COMMANDS]


# Every day only gc is killed for real; the others are simulated in ``test_crash_acts``.
@pytest.mark.parametrize(("command", "most"), [pytest.param(GC, 4, id="gc, sampled"), *_SLOW])
@pytest.mark.fault("C10", "SIGKILL at a system call of gc, promote, materialize, reproduce, registry export")
def test_killed(base: Path, template: Sandbox, cases: Callable[[int], None], command: Command, most: int) -> None:
    require_strace(base)
    found = points(new(template, base / "clean", command), base / "trace", arguments=command.arguments)
    chosen = random.Random(8).sample(found, min(most, len(found)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda item: tried(template, base / str(item[0]), command, item[1]), enumerate(chosen)))
    killed = [wrong for wrong in results if wrong is not None]
    cases(len(killed))
    assert len(killed) >= min(most, 20) - 1
    assert [text for wrong in killed for text in wrong] == []


def test_what_is_left_is_seen(template: Sandbox, tmp_path: Path) -> None:
    """The teeth: an object that is neither there nor known to be evicted, and an entry that is gone."""
    sandbox = new(template, tmp_path / "teeth", GC)
    before = lines(sandbox)
    sandbox.ok(*GC.arguments)
    assert broken_laws(sandbox, GC, before) == []
    assert broken_laws(sandbox, GC, [*before, b"more"]) == ["entries are lost"]
    for mark in (sandbox.root / "cache" / "evicted").iterdir():
        mark.unlink()
    assert any("artifact_absent" in text for text in problems(sandbox, _LEFT))
    assert len(registry_of(sandbox).check()) == 0
