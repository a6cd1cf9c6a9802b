"""``doit plan``: fates, reasons, gates, and JSON that other programs rely on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ingot import registry
from ingot.core.locks import is_held
from projectkit import Sandbox
from recordkit import copied, simple

ABC = "targets:\n" + simple("a") + simple("b", depends="a") + simple("c", content="c")


@pytest.fixture
def fresh(sandbox: Sandbox) -> Sandbox:
    """a → b, and c beside them; nothing is built."""
    sandbox.spec(ABC)
    return sandbox


@pytest.fixture(scope="module")
def all_built(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox.make(tmp_path_factory.mktemp("abc"))
    sandbox.spec(ABC)
    sandbox.ok()
    return sandbox


@pytest.fixture
def built(all_built: Sandbox, tmp_path: Path) -> Sandbox:
    """The same, built."""
    return copied(all_built, tmp_path)


def test_json_has_the_documented_fields(fresh: Sandbox) -> None:
    data = fresh.json("plan")
    assert data["format"] == 1
    a, b, c = data["targets"]
    assert a | {"key": None} == {
        "target": "s:a",
        "kind": "command",
        "state": "stale",
        "present": False,
        "reasons": [{"code": "never_built", "detail": "never built"}],
        "key": None,
        "digest": None,
        "gate": None,
    }
    assert len(a["key"]) == 64
    assert (b["state"], b["key"], b["reasons"][0]["code"]) == ("waiting", None, "input_stale")
    assert c["state"] == "stale"


def test_what_is_built_is_present_with_key_and_digest(built: Sandbox) -> None:
    for item in built.json("plan")["targets"]:
        assert (item["state"], item["present"], item["reasons"]) == ("fresh", True, [])
        assert item["digest"] == registry.latest(item["target"], built.root)["digest"]
    assert "all 3 targets are fresh" in built.ok("plan")


def test_what_would_be_built_is_counted_in_words(fresh: Sandbox) -> None:
    assert "2 targets would be built; 1 waits for them and is built only if inputs change\n" in fresh.ok("plan")
    assert "1 target would be built\n" in fresh.ok("plan", "s:c")
    fresh.ok("s:c")
    assert "the target is fresh; doit would build nothing\n" in fresh.ok("plan", "s:c")


def test_planning_builds_nothing_and_begins_no_log(fresh: Sandbox) -> None:
    fresh.ok("plan")
    assert not (fresh.root / "cache" / "objects").exists()
    assert not (fresh.root / "registry").exists()


def test_a_name_means_the_target_and_what_it_is_built_from(fresh: Sandbox) -> None:
    assert [item["target"] for item in fresh.json("plan", "s:b")["targets"]] == ["s:a", "s:b"]
    assert [item["target"] for item in fresh.json("plan", "s:c", "s:a")["targets"]] == ["s:a", "s:c"]
    assert len(fresh.json("plan", "s")["targets"]) == 3
    assert [item["target"] for item in fresh.json("plan", "s:[ac]*")["targets"]] == ["s:a", "s:c"]


def test_a_matrix_is_named_as_a_whole(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n  m: {kind: command, command: [sh, -c, 'echo $X > {out}/o'], "
        "matrix: {env: [{one: {X: '1'}}, {two: {X: '2'}}]}}\n"
    )
    names = [item["target"] for item in sandbox.json("plan", "s:m")["targets"]]
    assert len(names) == 2
    assert [item["target"] for item in sandbox.json("plan", names[1])["targets"]] == [names[1]]


def test_what_differs_is_named(built: Sandbox) -> None:
    built.spec(ABC.replace("echo x", "echo y", 1))
    text = built.ok("plan")
    assert "command[2] echo x" in text
    assert "waits for a" in text
    assert "1 target would be built; 1 waits for it and is built only if inputs change (1 fresh)\n" in text


def test_gates_are_judged_from_what_is_recorded(built: Sandbox) -> None:
    gates = "gates:\n  a.bytes: {max: 1}\n  b.bytes: {min: 4, max: 4}\n  c.bytes: {max: 9}\n"
    built.spec(ABC.replace("echo c", "echo cc") + gates)
    judged = {item["target"]: item["gate"] for item in built.json("plan")["targets"]}
    assert judged == {"s:a": "fail", "s:b": "pass", "s:c": "unknown"}, "c is stale: nothing is known of it as it is now"
    text = built.ok("plan")
    assert "gate: a.bytes ≤ 1: FAIL at 2" in text


def test_a_missing_program_is_named_before_anything_runs(sandbox: Sandbox) -> None:
    sandbox.spec(
        "targets:\n  a: {kind: command, command: [sh, -c, 'echo > {out}/o'], tools: {nope: [no-such-program-x, -v]}}\n"
    )
    text = sandbox.ok("plan")
    assert "note: not everything that the stale targets need is installed" in text
    assert "nope" in text


def test_a_target_that_another_process_builds_is_building(fresh: Sandbox) -> None:
    (item, *_rest) = fresh.json("plan")["targets"]
    locks = fresh.root / "cache" / "locks"
    locks.mkdir(parents=True)
    with (locks / f"{item['key']}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (item, *_rest) = fresh.json("plan")["targets"]
        assert item["state"] == "building"
        assert "1 is being built by another process" in fresh.ok("plan")
    (item, *_rest) = fresh.json("plan")["targets"]
    assert item["state"] == "stale"


def test_asking_for_a_lock_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists()
    path.touch()
    assert not is_held(path)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert is_held(path)
    os.close(descriptor)
