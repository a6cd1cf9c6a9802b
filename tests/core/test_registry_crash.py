"""Killed, or failed by the disk, at every single operation: nothing acknowledged is lost, nothing unsigned signed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingot.core import disk
from ingot.core.registry import Registry
from ingot.errors import DiskFailed
from machine import Killed, Stopping
from registrykit import Project, numbers, project, selected


def stops(folder: Path, fault: Callable[[], BaseException], act: Callable[[int], object]) -> Iterator[tuple[int, bool]]:
    """Run ``act(n)`` with a stop at its n-th change of the disk, for n = 1, 2, … until it gets through."""
    for stop_at in range(1, 500):
        machine = Stopping(folder, stop_at, fault)
        with machine.running():
            try:
                act(stop_at)
                stopped = False
            except (Killed, DiskFailed):
                stopped = True
        yield stop_at, stopped
        # A fault in what is derived (ingot.lock) is no failure of the append: go on until no operation is left.
        if machine.count < stop_at:
            return
    raise AssertionError("it never got through")


def everything(at: Project) -> bytes:
    """All bytes ever moved aside."""
    return b"".join(path.read_bytes() for path in at.quarantine.iterdir()) if at.quarantine.is_dir() else b""


def verify_after(at: Project, acknowledged: list[int], attempted: list[int]) -> None:
    """The laws, after a crash: a new process reads all that was acknowledged, and goes on."""
    found = numbers(at.registry())
    assert found[: len(acknowledged)] == acknowledged
    assert found[len(acknowledged) :] in ([], attempted), "a part of a commit is visible"
    registry = at.registry()
    registry.append([selected(99)])
    found = numbers(at.registry())
    assert found in ([*acknowledged, 99], [*acknowledged, *attempted, 99])
    assert at.registry().check() == []
    assert registry.notices == []
    assert len(list(at.root.iterdir())) == 1, "a crash must not begin another log"
    left = [path for place in (at.root, at.home / "state") for path in place.rglob("*.tmp-*")]
    assert [*left, *at.tree.glob(".*.tmp-*")] == []


@pytest.mark.parametrize(
    "fault",
    [Killed, lambda: OSError(errno.ENOSPC, "full"), lambda: OSError(errno.EIO, "broken")],
    ids=["kill", "full", "io"],
)
@pytest.mark.parametrize("before", [0, 2], ids=["first-append", "later-append"])
def test_stopped_at_every_operation(tmp_path: Path, fault: Callable[[], BaseException], before: int) -> None:
    projects: dict[int, Project] = {}
    registries: dict[int, Registry] = {}

    def act(stop_at: int) -> None:
        registries[stop_at].append([selected(50), selected(51)])

    def prepare(stop_at: int) -> None:
        at = projects[stop_at] = project(tmp_path, f"p{stop_at}", f"u{stop_at}")
        registries[stop_at] = at.registry()
        for number in range(before):
            registries[stop_at].append([selected(number)])

    prepare(1)
    count = 0
    for stop_at, stopped in stops(tmp_path, fault, act):
        acknowledged = list(range(before)) + ([] if stopped else [50, 51])
        if before or not stopped:
            verify_after(projects[stop_at], acknowledged, [50, 51] if stopped else [])
        else:
            verify_first(projects[stop_at])
        count += stopped
        prepare(stop_at + 1)
    assert count > 12


def verify_first(at: Project) -> None:
    """A crash while a log is begun: it is begun again or completed, and both are clean."""
    at.registry().append([selected(99)])
    assert numbers(at.registry()) in ([99], [50, 51, 99])
    assert at.registry().check() == []


def test_stopped_again_while_recovering(tmp_path: Path) -> None:
    """Every crash of an append, each followed by every crash of the append that recovers from it."""
    template = project(tmp_path, "t", "t")
    template.registry().append([selected(0)])
    tail = b'{"torn":'
    projects: dict[int, Project] = {}

    def prepare(stop_at: int) -> None:
        at = projects[stop_at] = project(tmp_path, f"p{stop_at}", f"u{stop_at}")
        at.registry().append([selected(0)])
        with at.log().open("ab") as file:
            file.write(tail)

    prepare(1)
    for stop_at, stopped in stops(tmp_path, Killed, lambda n: projects[n].registry().append([selected(1)])):
        at = projects[stop_at]
        verify_after(at, [0] if stopped else [0, 1], [1] if stopped else [])
        assert tail in everything(at), "an unsigned tail was dropped"
        assert tail not in at.log().read_bytes()
        prepare(stop_at + 1)


def test_a_writer_killed_before_its_pin_leaves_a_tail_that_is_never_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = project(tmp_path)
    at.registry().append([selected(0)])

    def killed(*_arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("ingot.core.pins.StatePins.write", killed)
        with pytest.raises(Killed):
            at.registry().append([selected(1)])
    assert [problem["code"] for problem in at.registry().check()] == ["unsigned_tail"]
    at.registry().append([selected(2)])
    assert numbers(at.registry()) == [0, 2]
    assert b'"number":1' in everything(at)
    assert b'"number":1}' not in at.log().read_bytes()


def test_a_writer_killed_between_pin_and_checkpoint_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = project(tmp_path)
    at.registry().append([selected(0)])
    original = disk.write_file_atomic

    def killed(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "checkpoint":
            raise Killed
        original(path, data, mode)

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write_file_atomic", killed)
        with pytest.raises(Killed):
            at.registry().append([selected(1)])
    assert numbers(at.registry()) == [0]
    assert [problem["code"] for problem in at.registry().check()] == ["unsigned_tail"]
    registry = at.registry()
    registry.append([selected(2)])
    assert numbers(registry) == [0, 1, 2]
    assert registry.notices == []
    assert at.registry().check() == []


def test_the_order_of_a_commit(tmp_path: Path) -> None:
    """Lines, their sync; the pin, its folder; the checkpoint, its folder; ``ingot.lock``, its folder."""
    at = project(tmp_path)
    registry = at.registry()
    registry.append([selected(0)])
    machine = Stopping(tmp_path, 0)
    with machine.running():
        registry.append([selected(1)])
    steps = [(it.name, Path(it.to or it.path)) for it in machine.steps if it.name in ("write", "sync", "rename")]
    seen = [(name, path.name.split(".tmp-")[0].lstrip(".")) for name, path in steps]
    folder, pins = at.folder().name, "pins"
    assert seen == [
        ("write", "log.jsonl"),
        ("sync", "log.jsonl"),
        *replaced(f"{folder}.json", pins),
        *replaced("checkpoint", folder),
        *replaced("ingot.lock", at.tree.name),
    ]


def replaced(name: str, folder: str) -> list[tuple[str, str]]:
    return [("write", name), ("sync", name), ("rename", name), ("sync", folder)]
