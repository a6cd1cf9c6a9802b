"""What earlier versions wrote is verified and read by this one. ``make.py`` made the fixtures; none is made again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from projectkit import Sandbox

FIXTURES = sorted(Path(__file__).parent.glob("v*.tar.xz"))


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name.partition(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Sandbox:
    """The project, on the machine of somebody who has no key of it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    return Sandbox(tmp_path / "project", tmp_path / "home")


def test_there_is_one() -> None:
    assert FIXTURES


def test_it_verifies(old: Sandbox) -> None:
    found = old.json("audit")
    assert found["problems"] == []
    assert {note["code"] for note in found["notes"]} <= {"artifact_absent", "derived_unsealed"}
    assert found["entries"] == len((next(old.root.glob("registry/*/log.jsonl"))).read_bytes().splitlines())


def test_it_is_up_to_date_and_can_be_built_on(old: Sandbox) -> None:
    states = {item["target"]: item["state"] for item in old.json("plan")["targets"]}
    assert states == {"s:files": "fresh", "s:one": "evicted", "s:two": "fresh", "s:sized": "fresh"}
    assert "nothing to do" in old.ok("s")
    old.file("data/text.txt", "something else\n")
    assert "1 built" in old.ok("s")
    assert old.json("audit")["problems"] == []


def test_every_type_of_entry_is_read(old: Sandbox) -> None:
    entries = json.loads(old.ok("history", "--json"))
    kinds = {"origin", "build", "selected", "gate-failed", "promote", "rollback", "accept", "reproduced"}
    assert {entry["type"] for entry in entries} == kinds
    assert old.ok("history").count("\n") > len(entries)
    assert old.json("show", "s:two")["metrics"]["bytes"]["value"] == len("first\nx\n")
    assert old.json("show", "--active", "s")["targets"]
    assert old.json("gc", "--dry-run", "--newest", "0")["kept"]


def test_its_proof_and_its_earlier_checkpoint_hold(old: Sandbox) -> None:
    proof = old.json("registry", "verify", "two.tlog-proof", "--artifact", "cache/latest/s/two")
    assert (proof["target"], proof["artifact_equal"]) == ("s:two", True)
    grown = old.json("registry", "consistency", "earlier-checkpoint")
    assert 0 < grown["old"] < grown["size"]
