"""One run over one project: what is decided, what is recorded, and what is found before the first stage starts."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from ingot.core import gitinfo
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.errors import DiskFailed, IngotError, RefusedInput, UsageError
from projectkit import Sandbox, counted
from recordkit import object_of, receipts, simple, writable

#: A program whose bytes differ with each run.
RANDOM = "head -c 8 /dev/urandom | od -An -tx1 > {out}/out.txt"


@pytest.fixture(autouse=True)
def _own_keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))


def built(session: Session, *names: str) -> None:
    """Do what doit does for these targets, which come inputs first."""
    for name in names:
        if not session.up_to_date(name):
            session.execute(name)


def opened(sandbox: Sandbox) -> Session:
    session = Session(Project.open(sandbox.root))
    session.selected = tuple(session.project.nodes)
    return session


def test_a_rebuild_with_other_bytes_gives_its_consumers_other_keys(sandbox: Sandbox) -> None:
    sandbox.spec(f"targets:\n  a: {{kind: command, command: [sh, -c, '{RANDOM}']}}\n" + simple("b", depends="a"))
    sandbox.ok()
    first = receipts(sandbox)
    sandbox.ok("forget", "s:a")
    sandbox.ok()
    second = receipts(sandbox)
    assert second["s:a"]["key"] == first["s:a"]["key"]
    assert second["s:a"]["digest"] != first["s:a"]["digest"]
    assert second["s:a"]["observed"] == {"digest": first["s:a"]["digest"], "agrees": False}
    assert second["s:b"]["key"] != first["s:b"]["key"]
    assert second["s:b"]["inputs"]["data"]["digest"] == second["s:a"]["digest"]
    assert sandbox.states() == {"s:a": "fresh", "s:b": "fresh"}


def test_targets_that_share_a_key_keep_their_own_results(sandbox: Sandbox) -> None:
    same = f"{{kind: command, command: [sh, -c, '{RANDOM}']}}"
    sandbox.spec(f"targets:\n  one: {same}\n  two: {same}\n" + simple("after", depends="two"))
    sandbox.ok()
    first = receipts(sandbox)["s:one"]["digest"]
    assert len(sandbox.entries("build")) == 2, "two has found what one built"
    sandbox.ok("-a", "s:one")
    sandbox.ran()
    before = len(sandbox.entries())
    sandbox.ok()
    assert len(sandbox.entries()) == before
    assert receipts(sandbox)["s:one"]["digest"] != first
    assert receipts(sandbox)["s:after"]["inputs"]["data"]["digest"] == first


def test_always_builds_what_was_only_found_again_too(sandbox: Sandbox) -> None:
    def write(content: str) -> None:
        text = counted(sandbox.root, "a") + counted(sandbox.root, "b", depends="a", content=content)
        sandbox.spec("targets:\n" + text)

    write("one")
    sandbox.ok()
    write("two")
    sandbox.ok()
    write("one")
    sandbox.ran()
    sandbox.ok("-a")
    assert sandbox.ran() == ["a", "b"]


def test_what_a_run_needs_of_evicted_results_is_asked_anew_at_each_run(sandbox: Sandbox) -> None:
    """Commands run several times in one process, each time other targets."""
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a") + simple("c", content="y", depends="a"))
    sandbox.ok("s:b")
    session = opened(sandbox)
    session.project.store.evict(str(receipts(sandbox)["s:a"]["digest"]))
    session.selected = ("s:a", "s:b")
    built(session, *session.selected)
    assert session.wanted == {}, "b is there, and reads nothing"
    session.begin(force=False, parallel=1, always=False)
    session.selected = ("s:a", "s:c")
    built(session, *session.selected)
    session.close()
    assert session.outcomes["s:a"].fate == "built", "c reads it"


def test_a_single_target_uses_the_inputs_that_are_there(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    done = sandbox.doit("-s", "s:b")
    assert "E-INPUT-STALE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    sandbox.ok("s:a")
    sandbox.ok("-s", "s:b")
    assert sandbox.states() == {"s:a": "fresh", "s:b": "fresh"}


def test_a_disk_error_while_looking_is_told_in_words(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    sandbox.ok()
    (result,) = (sandbox.root / "cache" / "results").iterdir()
    result.unlink()
    result.mkdir()
    done = sandbox.doit()
    assert done.returncode in {1, 2}
    assert "E-IO" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_cannot_be_saved_at_the_end_is_no_traceback(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    (sandbox.root / "cache" / "index.json").mkdir(parents=True)
    (sandbox.root / "cache" / "stat.json").mkdir()
    done = sandbox.doit()
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    assert sandbox.states() == {"s:a": "fresh"}


def test_keys_inside_the_project_are_refused_before_the_first_stage(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.extra_env["XDG_CONFIG_HOME"] = str(sandbox.root / "config")
    done = sandbox.doit()
    assert "E-KEY-PLACE" in done.stdout + done.stderr
    assert sandbox.ran() == []


@pytest.mark.parametrize("where", ["registry", "keys", "pins", "results"])
def test_a_place_that_cannot_be_written_is_found_before_the_first_stage(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    place = {
        "registry": sandbox.root / "registry",
        "keys": sandbox.home / "config" / "ingot" / "keys",
        "pins": sandbox.home / "state" / "ingot" / "pins",
        "results": sandbox.root / "cache" / "results",
    }[where]
    place.mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place and real(path, mode))
    session = opened(sandbox)
    with pytest.raises(DiskFailed, match="permission denied") as caught:
        session.execute("s:a")
    assert str(place) in caught.value.what
    assert sandbox.ran() == []


def test_others_may_read_the_key_is_found_before_the_first_stage(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    (key,) = (sandbox.home / "config" / "ingot" / "keys").iterdir()
    key.chmod(0o644)
    sandbox.spec("targets:\n" + counted(sandbox.root, "a", content="new"))
    sandbox.ran()
    done = sandbox.doit()
    assert "E-KEY-MODE" in done.stdout + done.stderr
    assert sandbox.ran() == []


def test_what_is_fresh_needs_no_package(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    sandbox.ok()
    sandbox.spec("targets:\n" + simple("a") + simple("b", content="y"))
    seen: list[list[str]] = []
    monkeypatch.setattr("ingot.core.project.missing_tools", lambda nodes: seen.append([node.id for node in nodes]))
    session = opened(sandbox)
    session.execute("s:b")
    session.close()
    assert seen == [["s:b"]]


def test_a_result_found_again_is_selected_once_by_two_processes(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    sandbox.ok()
    sandbox.spec("targets:\n" + simple("other"))
    one, two = opened(sandbox), opened(sandbox)
    assert not one.up_to_date("s:other")
    assert not two.up_to_date("s:other")
    one.execute("s:other")
    two.execute("s:other")
    assert len(sandbox.entries("selected")) == 1


def test_a_failing_gate_is_recorded_once_by_two_processes(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    sandbox.ok()
    sandbox.spec("targets:\n" + simple("a") + "gates:\n  a.bytes: {max: 0}\n")
    one, two = opened(sandbox), opened(sandbox)
    for session in (one, two):
        assert not session.up_to_date("s:a")
    for session in (one, two):
        with pytest.raises(IngotError, match="do not pass"):
            session.execute("s:a")
    assert len(sandbox.entries("gate-failed")) == 1


def test_threads_share_what_is_in_force(sandbox: Sandbox) -> None:
    """One thread looks at a target while others put their results in force."""
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    sandbox.ok()
    project = Project.open(sandbox.root)
    node, stop = project.nodes["s:b"], threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            project.current[f"x:{number}"] = project.current["s:a"]

    project.check(project.nodes["s:a"])
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            project.check(node)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_source_edited_while_its_stage_starts_is_refused(sandbox: Sandbox) -> None:
    path = sandbox.file("specs/a.txt", "1\n")
    sandbox.spec("targets:\n" + counted(sandbox.root, "a", source="a.txt"))
    session = opened(sandbox)
    assert not session.up_to_date("s:a")
    path.write_text("2\n")
    with pytest.raises(RefusedInput, match="changed while it was being read") as caught:
        session.execute("s:a")
    assert caught.value.code == "E-CHANGED"
    session.close()
    assert sandbox.ran() == []
    assert list((sandbox.root / "cache" / "staging").iterdir()) == []
    sandbox.ok()
    assert receipts(sandbox)["s:a"]["digest"]
    assert sandbox.states() == {"s:a": "fresh"}


@pytest.mark.fault("B3", "an input is damaged between plan and use: the run stops, nothing is built from it")
def test_an_input_damaged_during_the_run_is_never_used(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a") + counted(sandbox.root, "b", depends="a"))
    session = opened(sandbox)
    built(session, "s:a")
    path = object_of(sandbox, "s:a")
    writable(path)
    writable(path / "out.txt").write_text("y\n")
    sandbox.ran()
    with pytest.raises(IngotError, match="is damaged") as caught:
        built(session, "s:b")
    session.close()
    assert caught.value.code == "E-OBJECT-DAMAGED"
    assert "run doit again" in str(caught.value.hint)
    assert sandbox.ran() == []
    sandbox.ok()
    assert sandbox.ran() == ["a", "b"]


def test_an_entry_too_large_for_the_log_is_refused_before_the_stage_runs(sandbox: Sandbox) -> None:
    script = f"echo a >> {sandbox.root}/ran.txt; echo x > {{out}}/x; : " + "x" * 64_000
    sandbox.spec(f"targets:\n  a: {{kind: command, command: [sh, -c, '{script}'], env: {{MORE: {'y' * 3000}}}}}\n")
    done = sandbox.doit()
    assert "E-LEAF-SIZE" in done.stdout + done.stderr
    assert "hundreds of inputs" in done.stdout + done.stderr
    assert sandbox.ran() == []


def test_many_inputs_and_a_long_script_are_recorded(sandbox: Sandbox) -> None:
    values = ", ".join(f"{{v{number}: {{V: '{number}'}}}}" for number in range(120))
    sandbox.spec(
        "targets:\n"
        f"  m: {{kind: command, command: [sh, -c, 'echo $V > {{out}}/out.txt'], matrix: {{env: [{values}]}}}}\n"
        f"  all: {{kind: command, command: [sh, -c, 'cat $0/out.txt > {{out}}/x; : {'z' * 30_000}', '{{data}}'],"
        " from: {data: [m]}}\n"
    )
    sandbox.ok()
    assert len(receipts(sandbox)["s:all"]["inputs"]["data"]) == 120


def test_an_output_that_is_refused_names_the_log(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n  a: {kind: command, command: [sh, -c, 'echo forgot to write']}\n")
    done = sandbox.doit()
    output = done.stdout + done.stderr
    assert "E-OUTPUT-EMPTY" in output
    assert "log: cache/logs/s/a.log" in output


def test_the_receipt_has_the_threads_that_the_stage_was_given(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([3, 5, 7, 9])
    monkeypatch.setattr(Project, "threads", property(lambda _self: next(given)))
    sandbox.spec("targets:\n  a: {kind: command, command: [sh, -c, 'echo {threads} > {out}/out.txt']}\n")
    session = opened(sandbox)
    built(session, "s:a")
    session.close()
    receipt = receipts(sandbox)["s:a"]
    assert (object_of(sandbox, "s:a") / "out.txt").read_text() == f"{receipt['environment']['threads']}\n"


def test_a_log_that_cannot_be_removed_fails_no_build(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    session = opened(sandbox)
    real, calls = Path.unlink, []

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "a.log" and path.exists():
            calls.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    built(session, "s:a")
    session.close()
    assert len(calls) == 1
    assert session.outcomes["s:a"].fate == "built"


def test_a_run_that_builds_nothing_drops_what_dead_builds_left(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a"))
    sandbox.ok()
    dead = sandbox.root / "cache" / "staging" / "0011223344556677"
    (dead / "out").mkdir(parents=True)
    dead.with_suffix(".lock").touch()
    sandbox.ok()
    assert list(dead.parent.iterdir()) == []


def test_the_registry_of_a_project_in_a_subfolder_is_no_change_of_it(tmp_path: Path) -> None:
    inner = Sandbox.make(tmp_path / "repo")
    inner.root.parent.joinpath("README").write_text("x\n")
    outer = Sandbox(inner.root.parent, inner.home)
    outer.git("init", "-q")
    outer.git("add", ".")
    outer.git("commit", "-qm", "x")
    gitinfo.git_state.cache_clear()
    for name in ("registry", "cache"):
        (inner.root / name).mkdir()
        (inner.root / name / "x").write_text("x")
    assert gitinfo.git_state(inner.root)["clean"] is True
    (inner.root / "specs" / "new.yaml").write_text("x")
    gitinfo.git_state.cache_clear()
    assert gitinfo.git_state(inner.root)["clean"] is False


def test_a_missing_input_of_a_run_is_wrong_use(sandbox: Sandbox) -> None:
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    project = Project.open(sandbox.root)
    with pytest.raises(UsageError, match="is built from s:a"):
        project.check(project.nodes["s:b"])
