"""``doit promote``, ``rollback``, ``accept`` and ``show --active`` as a person and a program use them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from decisionkit import own_keys, size
from ingot import registry
from ingot.core.names import COMMANDS
from ingot.errors import UsageError
from projectkit import REPO, Sandbox
from recordkit import copied, simple

HEX = 64


def write(sandbox: Sandbox, word: str = "yy", *, limit: int = 9, version: str = "1") -> None:
    """a, measured by m (its size is a metric), with a gate on what m measured."""
    a = simple("a", content=word).replace("{kind:", f"{{tools: {{t: [echo, '{version}']}}, kind:", 1)
    m = simple("m", depends="a").replace("{data}", "{candidate}").replace("{data: a}", "{candidate: a}")
    sandbox.spec(f"targets:\n{a}{m}gates:\n  m.bytes: {{max: {limit}}}\n")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Two results of each target; the first are promoted."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("decided"))
    write(sandbox, "x")
    sandbox.ok()
    sandbox.ok("promote", "s", "--reason", "first release")
    write(sandbox, "yy")
    sandbox.ok()
    return sandbox


@pytest.fixture
def decided(template: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    sandbox = copied(template, tmp_path)
    own_keys(sandbox, monkeypatch)
    return sandbox


def builds(sandbox: Sandbox) -> int:
    return len(sandbox.entries("build"))


def row(sandbox: Sandbox, target: str) -> dict[str, Any]:
    (found,) = [item for item in sandbox.json("show", "--active", "s")["targets"] if item["target"] == target]
    return dict(found)


def test_a_release_and_its_way_back(decided: Sandbox) -> None:
    first = row(decided, "s:a")["active"]
    assert first["reason"] == "first release"
    link = os.readlink(decided.root / "cache/latest/s/a")
    done = decided.json("promote", "s")
    assert [item["target"] for item in done["promoted"]] == ["s:a", "s:m"]
    assert done["promoted"][0]["replaces"] == first["digest"]
    assert done["promoted"][0]["gates"][0]["gate"] == "m.bytes"
    assert decided.json("promote", "s") | {"promoted": []} == {
        "format": 1,
        "promoted": [],
        "already_active": [{name: item[name] for name in ("target", "digest")} for item in done["promoted"]],
        "reason": None,
    }
    assert "nothing to promote: all 2 results are active already" in decided.ok("promote", "s")
    assert "nothing to promote" in decided.ok("promote", "s:a")
    back = decided.json("rollback", "s", "--reason", "too slow")
    assert [item["target"] for item in back["rolled_back"]] == ["s:a", "s:m"]
    now = row(decided, "s:a")
    assert (now["active"]["digest"], now["active"]["type"]) == (first["digest"], "rollback")
    assert (now["is_latest"], now["is_last_good"], now["present"]) == (False, False, True)
    assert decided.doit("rollback", "s").returncode == 2
    assert os.readlink(decided.root / "cache/latest/s/a") == link, "a decision moves no link"
    assert set(decided.states().values()) == {"fresh"}
    assert decided.json("audit")["ok"]


def test_the_screens(decided: Sandbox) -> None:
    table = decided.ok("show", "--active", "s")
    assert table.splitlines()[0].split() == ["target", "active", "since", "latest", "last", "good", "by"]
    assert ": first release" in table
    assert "promoted 1 target\n" in decided.ok("promote", "s:a")
    assert "specs and cache/latest are as they were" in decided.ok("rollback", "s:a", "--reason", "too slow")
    history = decided.ok("history")
    assert "active now (was nothing, 1 gate passed): first release" in history
    assert "active again (was " in history
    assert ": too slow" in history


def test_programs_get_the_same_answers(decided: Sandbox) -> None:
    shown = row(decided, "s:a")
    active = registry.active("s:a", decided.root)
    assert (active["digest"], active["present"]) == (shown["active"]["digest"], True)
    assert {"digest": active["digest"], **active["decision"]} == shown["active"]
    assert registry.latest("s:a", decided.root)["digest"] == shown["latest"]["digest"]
    assert registry.last_good("s:a", decided.root)["digest"] == shown["last_good"]["digest"]
    for function in (registry.active, registry.last_good):
        with pytest.raises(UsageError) as caught:
            function("s:b", decided.root)
        assert caught.value.code == "E-TARGET"


def test_nothing_active_is_an_answer(chain: Sandbox) -> None:
    with pytest.raises(UsageError) as caught:
        registry.active("s:a", chain.root)
    assert caught.value.code == "E-NOT-ACTIVE"
    (item, *_more) = chain.json("show", "--active", "s")["targets"]
    assert (item["active"], item["present"], item["is_latest"]) == (None, None, False)
    assert "nothing was promoted" in chain.ok("show", "--active", "s:a")
    done = chain.doit("show", "--active", "nothing")
    assert (done.returncode, done.stderr.partition(":")[0]) == (2, "E-TARGET")


def test_a_failing_gate_is_exit_code_1_and_what_is_active_stays(decided: Sandbox) -> None:
    before = row(decided, "s:a")
    write(decided, limit=3)
    assert decided.doit().returncode == 1
    done = decided.doit("promote", "s:a", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("E-GATE: nothing was promoted: a gate fails for s:a\n  m.bytes ≤ 3: FAIL at ")
    after = row(decided, "s:a")
    assert after["active"] == before["active"]
    assert after["last_good"]["digest"] == before["active"]["digest"], "the newest one failed"


def test_rollback_works_with_a_broken_spec_and_promote_does_not(decided: Sandbox) -> None:
    decided.ok("promote", "s:a")
    decided.spec("targets: [")
    assert decided.doit("promote", "s:a").returncode == 2
    decided.ok("rollback", "s:a")
    assert row(decided, "s:a")["active"]["type"] == "rollback"
    assert row(decided, "s:m")["latest"]["digest"], "the log knows what the spec does not say any more"


def test_an_artifact_that_is_gone_is_said_to_be_so(decided: Sandbox) -> None:
    (decided.root / "cache").rename(decided.root / "elsewhere")
    assert row(decided, "s:a")["present"] is False
    assert "is not in the store here or is damaged" in decided.ok("show", "--active", "s")
    done = decided.doit("promote", "s:a", "--digest", row(decided, "s:a")["latest"]["digest"])
    assert (done.returncode, done.stderr.partition(":")[0]) == (4, "E-OBJECT-MISSING")


def test_accept_after_an_upgrade_and_a_real_build_later(decided: Sandbox) -> None:
    write(decided, version="2")
    assert decided.states()["s:a"] == "stale"
    count, digest = builds(decided), decided.json("show", "s:a")["digest"]
    shown = decided.json("accept", "s:a", "--reason", "the same bytes")["accepted"]
    assert [item["name"] for item in shown["differs"]] == ["tools.t[1]", "t"]
    assert (shown["digest"], shown["reason"], len(shown["key"])) == (digest, "the same bytes", HEX)
    assert decided.states() == {"s:a": "fresh", "s:m": "fresh"}
    assert "nothing to do: 2 targets fresh" in decided.ok()
    assert builds(decided) == count
    assert decided.json("accept", "s:a", "--reason", "again")["accepted"] is None
    for command in (("show", "s:a"), ("why", "s:a"), ("history", "s:a"), ("plan",)):
        said = decided.ok(*command)
        assert "accepted under a new key" in said, command
        assert "the same bytes" in said, command
    assert decided.json("why", "s:a")["targets"][0]["reasons"][0]["code"] == "accepted"
    decided.ok("forget", "s:a")
    decided.ok()
    assert builds(decided) == count + 1
    receipt = decided.json("show", "s:a")
    assert "accepted" not in receipt
    assert "observed" not in receipt, "the key was not observed to give what was accepted"


def test_always_builds_an_accepted_result_for_real(decided: Sandbox) -> None:
    write(decided, version="2")
    decided.ok("accept", "s:a", "--reason", "the same bytes")
    count = builds(decided)
    decided.ok("-a", "s:a")
    assert builds(decided) == count + 1
    assert decided.json("audit")["ok"]


WRONG = (
    (("promote",), "E-USAGE"),
    (("promote", "s:zz"), "E-TARGET"),
    (("promote", "s", "--digest", "12345678"), "E-TARGET"),
    (("promote", "s:a", "--reason", " "), "E-REASON"),
    (("rollback", "s:zz"), "E-TARGET"),
    (("rollback", "s:a", "--to"), "E-USAGE"),
    (("rollback", "s:a", "s:m"), "E-USAGE"),
    (("accept", "s:a"), "E-REASON"),
    (("accept", "s", "--reason", "x"), "E-TARGET"),
    (("accept", "s:zz", "--reason", "x"), "E-TARGET"),
)


def test_wrong_use_is_one_message_and_no_entry(decided: Sandbox) -> None:
    before = size(decided)
    for arguments, code in WRONG:
        done = decided.doit(*arguments)
        assert (done.returncode, done.stdout, done.stderr.partition(":")[0]) == (2, "", code), arguments
        assert "Traceback" not in done.stderr
    assert size(decided) == before


def test_no_spec_may_be_called_like_a_command() -> None:
    commands = [
        path.stem for path in (REPO / "src/ingot/commands").glob("*.py") if path.stem not in ("__init__", "base")
    ]
    assert {*commands} - {"screen"} <= COMMANDS
