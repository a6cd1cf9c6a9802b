"""``doit gc``: what is kept and why; what is evicted stays known and is built again only where its bytes are needed."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from projectkit import Sandbox
from recordkit import codes, copied, object_of, publish, receipts, simple, store_of

SPEC = f"targets:\n{simple('one')}{simple('two', content='y', depends='one')}{simple('three', depends='two')}"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Three results in a row, and before them those of four other versions of the last one."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("gc"))
    for word in ("a", "b", "c", "d", "x"):
        sandbox.spec(SPEC.replace(simple("three", depends="two"), simple("three", content=word, depends="two")))
        sandbox.ok("s")
    return sandbox


@pytest.fixture
def built(template: Sandbox, tmp_path: Path) -> Sandbox:
    return copied(template, tmp_path)


def objects(sandbox: Sandbox) -> set[str]:
    return set(store_of(sandbox).objects())


def digests(told: list[dict[str, Any]]) -> set[str]:
    return {item["digest"] for item in told}


def test_only_what_is_in_force_stays(built: Sandbox) -> None:
    before, size = objects(built), sum(path.stat().st_size for path in (built.root / "cache/objects").rglob("out.txt"))
    dry = built.json("gc", "--dry-run", "--newest", "0")
    assert (dry["dry_run"], objects(built)) == (True, before)
    told = built.json("gc", "--newest", "0")
    assert {**told, "dry_run": True} == dry
    assert len(told["evicted"]) == 4
    assert objects(built) == before - digests(told["evicted"])
    left = sum(path.stat().st_size for path in (built.root / "cache/objects").rglob("out.txt"))
    assert 0 < told["freed_bytes"] == size - left
    assert {item["targets"][0]: item["kept"] for item in told["kept"]} == {
        name: ["in force", "last good"] for name in ("s:one", "s:two", "s:three")
    }
    assert "nothing to do" in built.ok("s")
    assert codes(built) == []
    assert not list((built.root / "cache/trash").iterdir())


def test_the_newest_results_stay_with_what_they_were_built_from(built: Sandbox) -> None:
    told = built.json("gc", "--dry-run", "--newest", "3")
    assert len(told["evicted"]) == 2
    built.spec(SPEC.replace(simple("two", content="y", depends="one"), simple("two", content="z", depends="one")))
    built.ok("s")
    told = built.json("gc", "--newest", "3")
    # Of the three newest, the oldest was built from the version of `two` that is in force no more.
    assert ["input of one of the newest"] in [item["kept"] for item in told["kept"]]
    assert built.json("gc", "--dry-run", "--days", "1")["evicted"] == []


def test_what_was_promoted_stays_and_what_is_named(built: Sandbox) -> None:
    first = built.json("show", "s:three")["digest"]
    built.ok("promote", "s:three")
    built.spec(SPEC.replace(simple("three", depends="two"), simple("three", content="new", depends="two")))
    built.ok("s")
    built.ok("promote", "s:three")
    kept = {item["digest"]: item["kept"] for item in built.json("gc", "--newest", "0")["kept"]}
    assert kept[first] == ["promoted"]
    assert "active" in kept[built.json("show", "s:three")["digest"]]
    assert built.json("gc", "--dry-run", "--newest", "0", "--drop", "s:three")["evicted"] == []
    built.ok("rollback", "s:three")
    dropped = digests(built.json("gc", "--dry-run", "--newest", "0", "--drop", "s:three")["evicted"])
    assert len(dropped) == 1
    assert first not in dropped


def test_names_and_digests_to_keep(built: Sandbox) -> None:
    everything = built.json("gc", "--dry-run", "--newest", "0")
    named = everything["evicted"][0]["digest"]
    assert named not in digests(built.json("gc", "--dry-run", "--newest", "0", "--keep", named[:8])["evicted"])
    assert built.json("gc", "--dry-run", "--newest", "0", "--keep", "s:three")["evicted"] == []
    for wrong in (("--keep", "s:thre"), ("--drop", "t"), ("--newest", "-1"), ("--newest", "1.5"), ("--days", "x")):
        done = built.doit("gc", *wrong)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "s:three" in built.doit("gc", "--keep", "s:thre").stderr


def test_what_is_dropped_goes_although_the_newest_were_built_from_it(built: Sandbox) -> None:
    told = built.json("gc", "--drop", "s:one,s:two")
    assert {item["targets"][0] for item in told["evicted"]} == {"s:one", "s:two"}
    assert {item["targets"][0] for item in told["kept"]} == {"s:three"}


def test_what_stays_although_it_was_to_be_dropped_is_said(built: Sandbox) -> None:
    built.ok("promote", "s:three")
    built.spec(SPEC + simple("twin"))  # the same content as `one`
    built.ok("s")
    said = " ".join(built.ok("gc", "--drop", "s:three,s:one").split())
    assert "of s:three stays although it was to be dropped: active" in said
    one = receipts(built)["s:one"]["digest"][:12]
    assert f"{one} of s:one stays although it was to be dropped: in force" in said
    assert "to be dropped" not in built.ok("gc")


def test_what_was_accepted_stays_since_nothing_would_build_it_again(built: Sandbox) -> None:
    built.spec(SPEC.replace(simple("three", depends="two"), simple("three", content="new", depends="two")))
    built.ok("accept", "s:three", "--reason", "as good")
    told = built.json("gc", "--newest", "0", "--drop", "s:three")
    assert "s:three" in str([item["targets"] for item in told["kept"] if "accepted" in item["kept"]])
    assert built.json("show", "s:three")["present"] is True


def test_patterns_name_targets_as_elsewhere(built: Sandbox) -> None:
    assert built.json("gc", "--dry-run", "--newest", "0", "--keep", "s:thr*")["evicted"] == []
    told = built.json("gc", "--dry-run", "--newest", "0", "--drop", " *:one , s:tw* ")
    assert {item["targets"][0] for item in told["evicted"]} == {"s:one", "s:two", "s:three"}
    done = built.doit("gc", "--drop", "t:*")
    assert (done.returncode, "E-TARGET" in done.stderr) == (2, True)


@pytest.mark.parametrize("wrong", [("--keep", ","), ("--keep=",), ("--drop", " "), ("--keep", "0123456789")])
def test_a_list_that_would_keep_nothing_is_refused(built: Sandbox, wrong: tuple[str, ...]) -> None:
    before = objects(built)
    done = built.doit("gc", "--newest", "0", *wrong)
    assert (done.returncode, done.stderr.startswith(("E-USAGE", "E-DIGEST")), done.stdout) == (2, True, "")
    assert objects(built) == before


def test_numbers_that_are_larger_than_any_log_keep_all(built: Sandbox) -> None:
    for number in ("800000", "999999", "1e300"):
        assert built.json("gc", "--dry-run", "--newest", "0", "--days", number)["evicted"] == []
        assert built.json("gc", "--dry-run", "--newest", number)["evicted"] == []
    done = built.doit("gc", "--days", "inf")
    assert (done.returncode, done.stderr) == (2, "E-USAGE: --days takes a number from 0 on, not 'inf'\n")


def test_what_stays_for_its_age_alone_is_said(built: Sandbox) -> None:
    said = built.ok("gc")
    assert said.startswith("nothing to take out; ")
    assert "of them only as the newest results" in said
    assert "--newest 0 takes them too" in said
    assert "--newest" not in built.ok("gc", "--newest", "0")


def test_evicted_results_stay_known_until_their_bytes_are_needed(built: Sandbox) -> None:
    before = receipts(built)
    built.ok("gc", "--newest", "0", "--drop", "s:one,s:two")
    assert not object_of(built, "s:one").exists()
    assert not (built.root / "cache/latest/s/one").is_symlink()
    states = {item["target"]: item["state"] for item in built.json("plan")["targets"]}
    assert states == {"s:one": "evicted", "s:two": "evicted", "s:three": "fresh"}
    assert "nothing to do" in built.ok("s")
    assert receipts(built) == before
    # Another version of the last one needs the bytes of the one before it, and that one those of the first.
    built.spec(SPEC.replace(simple("three", depends="two"), simple("three", content="new", depends="two")))
    plan = {item["target"]: item for item in built.json("plan")["targets"]}
    assert [plan[name]["state"] for name in ("s:one", "s:two", "s:three")] == ["stale"] * 3
    assert plan["s:one"]["reasons"][0]["detail"] == "evicted, and needed by two"
    said = built.ok("s")
    assert "3 built" in said
    assert receipts(built)["s:two"]["observed"] == {"digest": before["s:two"]["digest"], "agrees": True}
    assert not list((built.root / "cache/evicted").glob(before["s:two"]["digest"]))
    assert codes(built) == []


def test_only_what_is_needed_is_built_again(built: Sandbox) -> None:
    built.ok("gc", "--newest", "0", "--drop", "s:one,s:two,s:three")
    assert objects(built) == set()
    assert "nothing to do: 3 targets evicted" in built.ok("s")
    built.ok("materialize", "s:one")
    assert object_of(built, "s:one").is_dir()
    assert not object_of(built, "s:two").exists()
    assert "nothing to do: 1 target fresh" in built.ok("materialize", "s:one")
    assert built.json("materialize", "s:one")["targets"][0]["fate"] == "fresh"
    said = built.ok("materialize", "s:three")
    assert "start     s:two  command  evicted, and needed by three" in said
    assert "2 built, 1 fresh" in said
    assert object_of(built, "s:three").is_dir()
    assert (built.root / "cache/latest/s/three/out.txt").read_text() == "x\ny\nx\n"


def test_what_is_evicted_is_said_and_how_it_comes_back(built: Sandbox) -> None:
    built.ok("promote", "s:two")
    built.ok("gc", "--newest", "0", "--drop", "s:one,s:three")
    assert "nothing to do: 1 target fresh, 2 evicted" in built.ok("s")
    said = built.ok("s:one")
    assert "note: s:one is evicted" in said
    assert "doit materialize s:one writes it" in said
    assert "s:three is" not in said
    assert "evicted by doit gc (write it again: doit materialize s:one)" in built.ok("show", "s:one")
    assert built.ok("why", "s:one").endswith("  doit materialize s:one writes it again\n")
    for verb in (("promote", "s:three"), ("accept", "s:three", "--reason", "x")):
        done = built.doit(*verb)
        assert (done.returncode, "doit materialize s:three writes it again" in done.stderr) == (4, True)
    older = next(entry["digest"] for entry in built.entries("build") if entry["target"] == "s:three")
    assert "when the spec turns back to it" in built.doit("promote", "s:three", "--digest", older).stderr
    done = built.doit("reproduce", "s:three")
    assert (done.returncode, "s:three is evicted: doit materialize s:three" in done.stderr) == (2, True)


def test_an_audit_tells_what_was_evicted_from_what_is_gone(built: Sandbox) -> None:
    gone = object_of(built, "s:two")
    built.ok("gc", "--newest", "0", "--drop", "s:one")
    gone.chmod(0o755)
    shutil.rmtree(gone)
    told = built.json("audit")
    assert (told["absent"], told["evicted"]) == (6, 5)
    assert sorted(note["detail"].partition(" of ")[2] for note in told["notes"]) == sorted(
        ["s:two is not present", "s:one was evicted by doit gc", *["s:three was evicted by doit gc"] * 4]
    )
    said = built.ok("audit").splitlines()
    assert [line for line in said if "s:two is not present" in line]
    assert "note artifact_absent: 5 artifacts evicted by doit gc (--json lists them)" in said
    assert not [line for line in said if "s:three" in line]


def test_what_reproduce_needed_is_said_to_be_here_again(built: Sandbox) -> None:
    built.ok("gc", "--newest", "0", "--drop", "s:one,s:two")
    said = built.ok("reproduce", "s:three", "s:one")
    assert "written again, since they were read: s:one, s:two" in said
    assert "not built again" not in said
    assert object_of(built, "s:one").is_dir()
    built.ok("gc", "--newest", "0", "--drop", "s:one,s:two")
    told = built.json("reproduce", "s:three")
    assert (told["written_again"], told["left_out"]) == (["s:one", "s:two"], [])


def test_what_is_to_be_materialized_has_a_name(built: Sandbox) -> None:
    built.ok("gc", "--drop", "s:one")
    for name, said in (("s:oen", "did you mean s:one"), ("s", "is a spec"), ("s", "  s:one\n"), ("t", "no target 't'")):
        done = built.doit("materialize", name)
        assert (done.returncode, said in done.stderr) == (3, True)
    done = built.doit("materialize", "--jsn", "s:one")
    assert (done.returncode, done.stderr) == (
        3,
        "ERROR: Error parsing Command: option --jsn not recognized; doit help materialize\n",
    )
    built.spec(SPEC.replace(simple("two", content="y", depends="one"), simple("two", content="z", depends="one")))
    done = built.doit("materialize", "s:two")
    assert (done.returncode, "s:two is stale, not virtual or evicted" in done.stderr) == (3, True)
    assert "doit s:two builds and writes it" in done.stderr


def test_a_spec_that_turns_back_to_an_evicted_result_gets_its_bytes(built: Sandbox) -> None:
    built.ok("gc", "--newest", "0")
    built.spec(SPEC.replace(simple("three", depends="two"), simple("three", content="a", depends="two")))
    (item,) = [it for it in built.json("plan")["targets"] if it["target"] == "s:three"]
    assert (item["state"], item["reasons"][0]["detail"]) == ("stale", "found again, but evicted")
    built.ok("s")
    assert (built.root / "cache/latest/s/three/out.txt").read_text().startswith("a\n")


def test_bytes_that_were_lost_are_no_eviction(built: Sandbox) -> None:
    built.ok("gc", "--newest", "0", "--drop", "s:one")
    shutil.rmtree(built.root / "cache/evicted")
    states = {item["target"]: item["state"] for item in built.json("plan")["targets"]}
    assert states["s:one"] == "stale"
    built.ok("s")
    assert object_of(built, "s:one").is_dir()


def test_forget_builds_an_evicted_result_again(built: Sandbox) -> None:
    built.ok("gc", "--newest", "0", "--drop", "s:three")
    built.ok("forget", "s:three")
    assert built.reasons("s:three") == ["forgotten"]
    built.ok("s")
    assert object_of(built, "s:three").is_dir()


@pytest.mark.fault("N7", "gc while another process builds")
def test_nothing_goes_while_something_is_built(built: Sandbox) -> None:
    before, lock = objects(built), os.open(built.root / "cache/locks/living.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)  # as every builder does
    done = built.doit("gc", "--newest", "0")
    assert (done.returncode, "has been building in this project" in done.stderr) == (6, True)
    assert objects(built) == before
    assert len(built.json("gc", "--dry-run", "--newest", "0")["evicted"]) == 4
    os.close(lock)
    built.ok("gc", "--newest", "0")


@pytest.mark.fault("N7", "gc while a build has published what no entry names yet")
def test_what_no_entry_names_is_left_for_a_day(built: Sandbox) -> None:
    digest, _files = publish(built, {"a": b"orphan"})
    assert digests(built.json("gc")["left"]) == {digest}
    path = store_of(built).object_path(digest)
    old = time.time() - 25 * 3600
    os.utime(path, (old, old))
    assert digests(built.json("gc")["dropped"]) == {digest}
    assert not path.exists()
    assert not (built.root / "cache/evicted" / digest).exists()


@pytest.mark.fault("C10", "gc killed after an object has lost its name")
def test_what_a_killed_gc_left_goes_with_the_next(built: Sandbox) -> None:
    left = built.root / "cache/trash/abc-1"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    left.chmod(0o555)
    built.ok("gc")
    assert not left.exists()


@pytest.mark.fault("C10", "gc killed between the mark and the removal")
def test_a_mark_without_removal_changes_nothing(built: Sandbox) -> None:
    digest = str(receipts(built)["s:one"]["digest"])
    (built.root / "cache/evicted").mkdir(exist_ok=True)
    (built.root / "cache/evicted" / digest).touch()
    assert "nothing to do" in built.ok("s")
    states = {item["target"]: item["state"] for item in built.json("plan")["targets"]}
    assert set(states.values()) == {"fresh"}


def test_a_bad_spec_stops_it(built: Sandbox) -> None:
    before = objects(built)
    built.spec("targets: {a: {kind: nothing}}\n", "t")
    assert built.doit("gc", "--newest", "0").returncode == 2
    assert objects(built) == before
