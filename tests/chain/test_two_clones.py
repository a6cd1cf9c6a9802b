"""Several writers of one project: clones with and without the key, branches, restored backups."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from projectkit import REPO, Sandbox, counted


def chain(sandbox: Sandbox, *, b: str = "b") -> None:
    sandbox.spec("targets:\n" + counted(sandbox.root, "a") + counted(sandbox.root, "b", depends="a", content=b))


@pytest.fixture
def first(tmp_path: Path) -> Sandbox:
    """A project in git with one build committed."""
    sandbox = Sandbox.make(tmp_path / "first")
    for name in (".gitattributes", ".gitignore"):
        shutil.copy(REPO / name, sandbox.root)
    sandbox.file("specs/s.yaml", "")
    chain(sandbox)
    sandbox.git("init", "-q", "-b", "main")
    (sandbox.root / ".git" / "info" / "exclude").write_text("ran.txt\n")
    sandbox.git("add", "-A")
    sandbox.git("commit", "-qm", "start")
    sandbox.ok()
    sandbox.git("add", "-A")
    sandbox.git("commit", "-qm", "built")
    return sandbox


def clone(first: Sandbox, folder: Path, *, home: Path | None = None) -> Sandbox:
    second = Sandbox(folder / "project", home or folder / "home")
    folder.mkdir()
    first.git("clone", "-q", str(first.root), str(second.root))
    return second


def test_the_receipt_names_the_commit_and_whether_the_tree_was_clean(first: Sandbox) -> None:
    receipt = first.json("show", "s:a")
    assert receipt["git"] == {"commit": first.git("rev-parse", "HEAD~1").strip(), "clean": True}
    first.ok("forget", "s:a")
    (first.root / "specs" / "new.txt").write_text("x")
    first.ok()
    assert first.json("show", "s:a")["git"] == {"commit": first.git("rev-parse", "HEAD").strip(), "clean": False}


@pytest.mark.fault("H4", "two clones with two keys are merged: no entry is lost, no conflict")
def test_two_clones_with_two_keys_build_and_merge_clean(first: Sandbox, tmp_path: Path) -> None:
    second = clone(first, tmp_path / "second")
    third = clone(first, tmp_path / "third")
    for sandbox, content in ((second, "two"), (third, "three")):
        chain(sandbox, b=content)
        sandbox.ok()
        assert sandbox.json("audit")["ok"]
        sandbox.git("add", "registry", "ingot.lock")
        sandbox.git("commit", "-qm", f"built {content}")
        sandbox.git("checkout", "-q", "specs")
    second.git("fetch", "-q", str(third.root), "main")
    second.git("merge", "-q", "--no-edit", "FETCH_HEAD")
    assert second.git("status", "--porcelain", "registry", "ingot.lock") == ""
    audit = second.json("audit")
    assert audit["problems"] == []
    assert audit["ok"]
    origins = {entry["origin"] for entry in second.entries()}
    assert len(origins) == 3
    assert len(second.entries("build")) == 6
    # The merged history is one: the first clone's key is known here, and its bytes equal those built here.
    shutil.copy(first.root / "specs" / "s.yaml", second.root / "specs" / "s.yaml")
    assert second.reasons("s:a") == ["found_again"]


@pytest.mark.fault("H5", "branches are switched and switched back between builds: no log forks")
def test_a_branch_switch_appends_to_no_older_log(first: Sandbox) -> None:
    before = first.git("rev-parse", "HEAD").strip()
    chain(first, b="more")
    first.ok()
    first.git("add", "-A")
    first.git("commit", "-qm", "more")
    first.git("checkout", "-q", "-b", "old", before)
    chain(first, b="other")
    assert "note: " in first.ok(), "a person is told that a new log was begun"
    assert len({entry["origin"] for entry in first.entries()}) == 2
    audit = first.json("audit")
    assert audit["ok"] or {problem["code"] for problem in audit["problems"]} == {"log_behind"}
    first.git("add", "-A")
    first.git("commit", "-qm", "other")
    first.git("checkout", "-q", "main")
    assert first.json("audit")["ok"]
    assert first.states()["s:a"] == "fresh"


@pytest.mark.fault("H5", "two clones of one user build at once: no log forks")
def test_a_second_clone_of_the_same_user_cannot_fork_the_log(first: Sandbox, tmp_path: Path) -> None:
    second = clone(first, tmp_path / "second", home=first.home)
    chain(first, b="one")
    first.ok()
    chain(second, b="two")
    second.ok()
    assert len({entry["origin"] for entry in second.entries("build")}) == 2
    assert first.json("audit")["ok"]
