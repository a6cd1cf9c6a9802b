"""A registry and a store tampered with by hand, and what ``doit audit`` says: real commands on a small project."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, SigningKey
from projectkit import Sandbox
from recordkit import copied, object_of, simple, writable

STORE, REGISTRY = 4, 5


@dataclass(frozen=True)
class Project:
    """The files that a person would look for first."""

    sandbox: Sandbox

    @property
    def folder(self) -> Path:
        return next((self.sandbox.root / "registry").iterdir())

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def lock(self) -> Path:
        return self.sandbox.root / "ingot.lock"

    def artifact(self, target: str) -> Path:
        """The one file of a target's artifact, made writable."""
        path = object_of(self.sandbox, target)
        writable(path)
        return writable(path / "out.txt")

    def lines(self) -> list[bytes]:
        return self.log.read_bytes().splitlines(keepends=True)

    def sign(self, key: SigningKey) -> None:
        """Sign whatever the log says now."""
        lines = [line.removesuffix(b"\n") for line in self.lines()]
        point = Checkpoint(key.name, len(lines), root_of([leaf_hash(line) for line in lines]))
        self.checkpoint.write_bytes(key.sign(point.text()))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """a → b, built once, committed to git, and then built on: the log has five entries, the commit pins three."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("template"))
    write(sandbox, "first")
    sandbox.ok()
    sandbox.file(".gitignore", "/cache/\n")
    sandbox.git("init", "-q")
    sandbox.git("add", "-A")
    sandbox.git("commit", "-qm", "built")
    folder = next((sandbox.root / "registry").iterdir())
    shutil.copytree(folder, sandbox.root.parent / "old")
    write(sandbox, "second")
    sandbox.ok()
    assert sandbox.json("audit")["ok"]
    return sandbox


def write(sandbox: Sandbox, content: str) -> None:
    sandbox.spec("targets:\n" + simple("a", content=content) + simple("b", depends="a"))


@pytest.fixture
def at(template: Sandbox, tmp_path: Path) -> Project:
    shutil.copytree(template.root.parent / "old", tmp_path / "old")
    return Project(copied(template, tmp_path))


def flip_a_bit(at: Project) -> None:
    path = at.artifact("s:b")
    status, data = path.stat(), bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add_a_file(at: Project) -> None:
    (at.artifact("s:b").parent / "more.txt").write_text("x")


def swap_two_artifacts(at: Project) -> None:
    one, other = (object_of(at.sandbox, name) for name in ("s:a", "s:b"))
    for path in (one, other, one.parent, other.parent):
        writable(path)
    one.rename(one.parent / "aside")
    other.rename(one)
    (one.parent / "aside").rename(other)


def edit_a_number(at: Project) -> None:
    at.log.write_bytes(at.log.read_bytes().replace(b'"value":6', b'"value":5', 1))


def delete_an_entry(at: Project) -> None:
    at.log.write_bytes(b"".join(at.lines()[:1] + at.lines()[2:]))


def insert_an_entry(at: Project) -> None:
    at.log.write_bytes(b"".join([*at.lines()[:2], at.lines()[1], *at.lines()[2:]]))


def reorder_entries(at: Project) -> None:
    first, one, two, *rest = at.lines()
    at.log.write_bytes(b"".join([first, two, one, *rest]))


def sign_with_another_key(at: Project) -> None:
    key = SigningKey(f"ingot.local/{at.folder.name}", bytes(32))
    edit_a_number(at)
    at.sign(key)


def replace_the_key_too(at: Project) -> None:
    sign_with_another_key(at)
    key = SigningKey(f"ingot.local/{at.folder.name}", bytes(32))
    (at.folder / "log.vkey").write_text(f"{key.verifier()}\n")


def rewrite_with_the_key(at: Project) -> None:
    (path,) = (at.sandbox.home / "config" / "ingot" / "keys").iterdir()
    edit_a_number(at)
    at.sign(SigningKey.parse(path.read_text().strip()))


def put_an_older_state_back(at: Project) -> None:
    for name in ("log.jsonl", "checkpoint"):
        shutil.copy(at.sandbox.root.parent / "old" / name, at.folder / name)


def remove_the_log(at: Project) -> None:
    shutil.rmtree(at.folder)


def raise_the_pin(at: Project) -> None:
    at.lock.write_text(at.lock.read_text().replace('"size": 5', '"size": 6'))


def spoil_the_pin_of_the_user(at: Project) -> None:
    (path,) = (at.sandbox.home / "state" / "ingot" / "pins").glob("*.json")
    path.write_text(path.read_text().replace("note", "n0te"))


WAYS: Mapping[str, tuple[Callable[[Project], None], str, int]] = {
    "flip one bit of an artifact, its time put back": (flip_a_bit, "artifact_damaged", STORE),
    "cut an artifact by one byte": (lambda at: os.truncate(at.artifact("s:b"), 3), "artifact_damaged", STORE),
    "delete a file of an artifact": (lambda at: at.artifact("s:b").unlink(), "artifact_damaged", STORE),
    "add a file to an artifact": (add_a_file, "artifact_damaged", STORE),
    "swap two artifacts": (swap_two_artifacts, "artifact_damaged", STORE),
    "edit a recorded number": (edit_a_number, "root_mismatch", REGISTRY),
    "delete an entry": (delete_an_entry, "log_truncated", REGISTRY),
    "insert an entry": (insert_an_entry, "root_mismatch", REGISTRY),
    "reorder two entries": (reorder_entries, "root_mismatch", REGISTRY),
    "edit and sign with another key": (sign_with_another_key, "signature_wrong", REGISTRY),
    "edit, sign with another key and replace the public key": (replace_the_key_too, "key_changed", REGISTRY),
    "edit and sign again with the real key": (rewrite_with_the_key, "log_forked", REGISTRY),
    "put an older signed state of the log back": (put_an_older_state_back, "log_truncated", REGISTRY),
    "remove the log": (remove_the_log, "log_missing", REGISTRY),
    "raise the number in ingot.lock": (raise_the_pin, "log_truncated", REGISTRY),
    "spoil the pin in the user's state folder": (spoil_the_pin_of_the_user, "pin_malformed", REGISTRY),
}


@pytest.mark.fault("T1", "registry or store is tampered with by hand: doit audit says which, exit code 4 or 5")
@pytest.mark.parametrize("way", WAYS)
def test_audit_finds_what_was_tampered_with(at: Project, way: str) -> None:
    tamper, code, status = WAYS[way]
    tamper(at)
    done = at.sandbox.doit("audit", "--json")
    assert done.returncode == status, done.stdout + done.stderr
    assert code in {problem["code"] for problem in json.loads(done.stdout)["problems"]}
    assert "Traceback" not in done.stderr


@pytest.mark.fault("T1", "a log edited behind its checkpoint: plan, why, show, history and doit refuse it")
def test_every_command_that_reads_the_log_refuses_one_that_was_edited(at: Project) -> None:
    before = at.sandbox.json("plan")
    assert {item["state"] for item in before["targets"]} == {"fresh"}
    status, size = at.log.stat(), at.log.stat().st_size
    edit_a_number(at)
    os.utime(at.log, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert at.log.stat().st_size == size, "nothing but the content, and a time that cannot be set, tell"
    for command in (["plan"], ["why", "s:b"], ["show", "s:b"], ["history"]):
        done = at.sandbox.doit(*command)
        assert done.returncode == REGISTRY, command
        assert done.stderr.startswith("E-REG-ROOT: ")
        assert "doit audit" in done.stderr
    done = at.sandbox.doit()
    assert done.returncode == 3
    assert "E-REG-ROOT" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_project_that_is_tampered_with_is_clean(at: Project) -> None:
    audit = at.sandbox.json("audit")
    assert (audit["problems"], audit["notes"]) == ([], [])
