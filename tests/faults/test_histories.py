"""What people do to a project between two runs: backups put back, keys lost, merges. Nothing is lost or wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingot.core.log import logs_in
from projectkit import Sandbox
from recordkit import audited, codes, copied, simple


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A project built in one state, copied whole as a backup, and built in another."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("template"))
    write(sandbox, "old")
    sandbox.ok()
    shutil.copytree(sandbox.root, sandbox.root.parent / "backup", symlinks=True)
    write(sandbox, "new")
    sandbox.ok()
    return sandbox


def write(sandbox: Sandbox, content: str) -> None:
    sandbox.spec("targets:\n" + simple("a", content=content) + simple("b", depends="a"))


@pytest.fixture
def at(template: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of it, the backup beside it."""
    shutil.copytree(template.root.parent / "backup", tmp_path / "backup", symlinks=True)
    return copied(template, tmp_path)


def put_back(at: Sandbox, names: Sequence[str]) -> None:
    """Restore parts of the backup, or all of it."""
    for name in names:
        path, saved = at.root / name, at.root.parent / "backup" / name
        for folder in (path, *path.rglob("*")) if path.is_dir() else ():
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o755)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(saved, path, symlinks=True) if saved.is_dir() else shutil.copy2(saved, path)


def logs(at: Sandbox) -> dict[str, bytes]:
    return {log.origin: log.lines_path.read_bytes() for log in logs_in(at.root / "registry")}


def output(at: Sandbox, content: str) -> None:
    """The project is whole in this state: everything is fresh and b's artifact is the one of this state."""
    assert set(at.states().values()) == {"fresh"}
    assert (at.root / "cache" / "latest" / "s" / "b" / "out.txt").read_text() == f"x\n{content}\n"


BACKUPS = {
    "registry": (["registry", "ingot.lock"], {"log_behind"}),
    "registry without its lock": (["registry"], {"log_truncated", "log_behind"}),
    "cache": (["cache"], set()),
    "registry and cache": (["registry", "ingot.lock", "cache"], {"log_behind"}),
}


@pytest.mark.fault("H1", "an old backup of registry, cache or both is put back: no result is wrong, no entry is lost")
@pytest.mark.parametrize("what", BACKUPS)
def test_an_old_backup_of_a_part_is_put_back(at: Sandbox, what: str) -> None:
    parts, expected = BACKUPS[what]
    newest = logs(at)
    put_back(at, parts)
    before = logs(at)
    result = audited(at)
    assert {item.code for item in (*result.problems, *result.notes)} - {"artifact_absent", "object_unnamed"} == expected
    text = at.ok()
    output(at, "new")
    after = logs(at)
    if "registry" in parts:
        assert "note: " in text, "a person is told that a new log was begun"
        assert {origin: after[origin] for origin in before} == before, "nothing is appended to the older log"
        assert len(after) == 2
    else:
        assert set(after) == set(newest)
        assert all(after[origin].startswith(lines) for origin, lines in newest.items())
    assert set(codes(at)) <= expected - {"log_behind"}


@pytest.mark.fault("H1", "an old backup of the whole project is put back: as it was then, and goes on in a new log")
def test_an_old_backup_of_the_whole_project_is_put_back(at: Sandbox) -> None:
    put_back(at, ["registry", "ingot.lock", "cache", "specs"])
    before = logs(at)
    assert codes(at) == []
    at.ok()
    output(at, "old")
    assert logs(at) == before, "nothing to do, nothing to record"
    write(at, "third")
    assert "note: " in at.ok()
    output(at, "third")
    assert {origin: lines for origin, lines in logs(at).items() if origin in before} == before
    assert [note.code for note in audited(at).notes] == ["log_behind"]


@pytest.mark.fault("H1", "a backup is put back in halves: a log without its checkpoint, a checkpoint without its log")
def test_a_backup_put_back_in_halves(at: Sandbox) -> None:
    (log,) = logs_in(at.root / "registry")
    saved = at.root.parent / "backup" / "registry" / log.folder.name
    whole = {path: path.read_bytes() for path in (log.lines_path, log.checkpoint_path)}
    shutil.copy(saved / "log.jsonl", log.lines_path)
    assert "log_truncated" in codes(at)
    for command in ([], ["plan"], ["show", "s:b"]):
        done = at.doit(*command)
        assert done.returncode in (3, 5)
        assert "E-REG-TRUNCATED" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert log.checkpoint_path.read_bytes() == whole[log.checkpoint_path], "nothing was signed"
    log.lines_path.write_bytes(whole[log.lines_path])
    shutil.copy(saved / "checkpoint", log.checkpoint_path)
    write(at, "third")
    at.ok()
    output(at, "third")
    assert log.lines_path.read_bytes().startswith(whole[log.lines_path]), "the commit was completed, then appended to"
    assert len(logs(at)) == 1
    assert codes(at) == []


@pytest.mark.fault("H2", "the signing key is lost: a new log begins, a person is told, the old one still verifies")
@pytest.mark.parametrize("lost", ["keys", "keys and pins"])
def test_a_lost_key(at: Sandbox, lost: str) -> None:
    before = logs(at)
    shutil.rmtree(at.home / "config")
    if lost == "keys and pins":
        shutil.rmtree(at.home / "state")
    output(at, "new")
    write(at, "third")
    text = at.ok()
    assert "no signing key of this user" in text
    output(at, "third")
    after = logs(at)
    assert {origin: after[origin] for origin in before} == before
    assert len(after) == 2
    assert codes(at) == []
    write(at, "fourth")
    assert "note: " not in at.ok(), "said once"
    assert len(logs(at)) == 2
    write(at, "new")
    assert at.reasons("s:a") == ["found_again"], "what the old log recorded is still known"


CONFLICT = "<<<<<<< HEAD\n{}=======\n{}>>>>>>> other\n"


@pytest.mark.fault("H3", "a merge leaves conflict marks in ingot.lock: audit says so, builds go on")
def test_a_conflict_in_the_lock(at: Sandbox) -> None:
    lock = at.root / "ingot.lock"
    ours, theirs = lock.read_text(), (at.root.parent / "backup" / "ingot.lock").read_text()
    lock.write_text(CONFLICT.format(ours, theirs))
    assert codes(at) == ["lock_malformed"]
    write(at, "third")
    text = at.ok()
    assert "ingot.lock" in text
    assert "malformed" in text
    assert lock.read_text() == CONFLICT.format(ours, theirs), "a person's half-done merge is not overwritten"
    output(at, "third")
    for side in (ours, theirs):
        lock.write_text(side)
        assert codes(at) == []
        write(at, f"after-{len(side)}-{side == ours}")
        at.ok()
        assert codes(at) == []
        (size,) = {pin["size"] for name, pin in json.loads(lock.read_text())["checkpoints"].items() if name}
        (log,) = logs_in(at.root / "registry")
        assert size == len(log.lines_path.read_bytes().splitlines())


@pytest.mark.fault("H4", "a log with a damaged line is merged in from another clone: named, and nothing is built on it")
def test_a_damaged_log_of_another_is_merged_in(at: Sandbox, tmp_path: Path) -> None:
    other = Sandbox.make(tmp_path / "other", home=tmp_path / "other-home")
    write(other, "theirs")
    other.ok()
    (log,) = logs_in(other.root / "registry")
    log.lines_path.write_bytes(log.lines_path.read_bytes().replace(b'"spec":"s"', b'"spec":"t"', 1))
    shutil.copytree(log.folder, at.root / "registry" / log.folder.name)
    result = audited(at)
    assert {problem.code for problem in result.problems} >= {"root_mismatch"}
    for command in ([], ["plan"], ["why", "s:a"]):
        done = at.doit(*command)
        assert done.returncode in (3, 5)
        assert log.origin in done.stdout + done.stderr
    shutil.rmtree(at.root / "registry" / log.folder.name)
    output(at, "new")
    assert codes(at) == []
