"""Eight builders, killed at random and started again, with ``gc`` among them: nothing is lost, doubled or half-made."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import doitkit
import stormkit
from ingot.core import disk
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.core.statement import build_statement
from machine import Killed
from projectkit import Sandbox
from recordkit import audited, object_of, receipts, registry_of, simple, writable

#: How long the storm of the full tier lasts.
MINUTES = "INGOT_STORM_MINUTES"
EVERYDAY_KILLS = 20


@pytest.mark.fault("C7", "eight builders are killed at random and started again, while gc makes room")
def test_a_short_storm(sandbox: Sandbox, cases: Callable[[int], None]) -> None:
    storm = stormkit.Storm(sandbox, random.Random(6))
    while storm.kills < EVERYDAY_KILLS:
        storm.round()
    cases(storm.kills)
    assert storm.wrong + stormkit.broken_laws(sandbox, storm.said()) == []
    assert_teeth(sandbox, storm.said())


@pytest.mark.slow
@pytest.mark.fault("C7", "eight builders are killed at random and started again, while gc makes room")
def test_a_long_storm(sandbox: Sandbox, cases: Callable[[int], None], tmp_path: Path) -> None:
    """For ten minutes, or as many as ``INGOT_STORM_MINUTES`` says; every twentieth round all is verified."""
    storm = stormkit.Storm(sandbox, random.Random(7))
    end = time.monotonic() + 60 * float(os.environ.get(MINUTES, "10"))
    while time.monotonic() < end:
        storm.round()
        if storm.rounds % 20 == 0:
            assert storm.wrong + stormkit.broken_laws(sandbox, storm.said()) == []
    cases(storm.kills)
    said = storm.said()
    (tmp_path / "reached.txt").write_text(f"{storm.kills} kills, {len(said)} acknowledged, {storm.rounds} rounds\n")
    print(f"{storm.kills} kills, {len(said)} acknowledged, {storm.rounds} rounds, {storm.collections} gc")
    assert storm.wrong + stormkit.broken_laws(sandbox, said) == []
    assert storm.kills > storm.rounds
    assert_teeth(sandbox, said)


@pytest.mark.fault("C7", "a builder dies between its pin and its commit, and one that runs comes to the same target")
def test_a_commit_that_another_one_left_unfinished(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead one built is recorded as soon as anybody signs: it is not built and recorded once more."""
    sandbox.spec("targets:\n" + simple("first", content="1") + simple("t"))
    write = disk.write_file_atomic

    def die(path: Path, *rest: Any, **more: Any) -> None:
        if path.name == "checkpoint":
            raise Killed
        write(path, *rest, **more)

    monkeypatch.setattr(os, "environ", {**os.environ, **sandbox.env})
    with doitkit.prepared():
        living, dying = Session(Project.open(sandbox.root)), Session(Project.open(sandbox.root))
        living.execute("s:first")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_file_atomic", die)
            with pytest.raises(Killed):
                dying.execute("s:t")
        assert not living.up_to_date("s:t"), "nobody has signed it yet"
        living.execute("s:t")
        living.close()
    builds = [
        entry.statement["subject"][0]["name"] for entry in registry_of(sandbox).entries() if entry.type == "build"
    ]
    assert builds == ["s:first", "s:t"]
    assert audited(sandbox).problems == []


def assert_teeth(sandbox: Sandbox, said: set[tuple[str, str]]) -> None:
    """What a storm must not do is seen, when it is done by hand to what the storm left."""

    def found() -> str:
        return "\n".join(stormkit.broken_laws(sandbox, said))

    said.add(("s:t0", "0" * 64))
    assert found() == "lost: s:t0 000000000000"
    said.remove(("s:t0", "0" * 64))
    rotten = writable(object_of(sandbox, "s:t1")) / "out.txt"
    before = writable(rotten).read_bytes()
    rotten.write_bytes(before + b"x")
    assert "artifact_damaged" in "\n".join(f"{it}" for it in audited(sandbox).problems)
    rotten.write_bytes(before)
    (sandbox.root / "cache" / "staging" / "person.txt").touch()
    assert "left behind" in found()
    (sandbox.root / "cache" / "staging" / "person.txt").unlink()
    registry_of(sandbox).append([build_statement(receipts(sandbox)["s:t2"])])
    assert "in the log 2 times: s:t2" in found()
