"""The writer of a log: which log it takes, what it says, what it leaves, and what it reads again."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from ingot.core import disk
from ingot.core.log import Log, Prefix, logs_in
from ingot.core.note import Checkpoint, SigningKey, VerifierKey
from ingot.core.pins import Pin, StatePins, encode_lock, read_lock, verify_log
from ingot.errors import RegistryDamaged
from registrykit import Project, project, selected


@pytest.fixture
def at(tmp_path: Path) -> Project:
    """A log of two entries."""
    made = project(tmp_path)
    made.registry().append([selected(1)])
    return made


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are synced, by name."""
    found: list[str] = []
    fsync = disk.fsync_dir

    def noted(path: Path) -> None:
        found.append(path.name)
        fsync(path)

    monkeypatch.setattr(disk, "fsync_dir", noted)
    return found


def copy_of(at: Project, name: str, user: str = "user") -> Project:
    """The same work tree elsewhere, without what git does not keep."""
    other = project(at.tree.parent, name, user)
    shutil.copytree(at.tree, other.tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns("cache"))
    return other


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def verified_logs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The logs that a writer verifies from now on, by the names of their folders."""
    found: list[str] = []

    def noted(log: Log, verifier: VerifierKey, pins: list[Pin], start: Prefix) -> tuple[Checkpoint | None, Prefix]:
        found.append(log.folder.name)
        return verify_log(log, verifier, pins, start)

    monkeypatch.setattr("ingot.core.log_writer.verify_log", noted)
    return found


def pins_of(at: Project) -> Path:
    return at.home / "state" / "pins"


# --- which log -----------------------------------------------------------------------------------------------


def test_whoever_has_no_key_begins_a_log_and_is_told_why(at: Project) -> None:
    (first,) = at.registry().heads()
    other = copy_of(at, "other", "stranger")
    registry = other.registry()
    origin = registry.append([selected(2)])[0].origin
    assert origin != first
    (notice,) = registry.notices
    assert notice == (
        f"{first}: no signing key of this user in {other.home / 'config' / 'keys'} (a new clone, or the key was lost); "
        f"new entries go to a new log, {origin}"
    )
    again = other.registry()
    assert again.append([selected(3)])[0].origin == origin
    assert again.notices == []


def test_whoever_is_behind_begins_a_log_and_is_told_why(at: Project) -> None:
    (first,) = at.registry().heads()
    other = copy_of(at, "other")
    at.registry().append([selected(2)])
    registry = other.registry()
    origin = registry.append([selected(3)])[0].origin
    (notice,) = registry.notices
    assert notice == (
        f"{first}: the log in this work tree is older than the newest seen of it (another branch, another clone or a "
        f"restored backup); new entries go to a new log, {origin}"
    )


def test_the_first_log_of_a_project_is_begun_without_a_word(tmp_path: Path) -> None:
    registry = project(tmp_path).registry()
    registry.append([selected(1)])
    assert registry.notices == []


def test_only_the_user_reads_keys_and_pins(at: Project) -> None:
    assert mode_of(pins_of(at)) == 0o700
    assert mode_of(at.home / "config" / "keys") == 0o700
    (key,) = (at.home / "config" / "keys").iterdir()
    assert mode_of(key) == 0o600


# --- durable -------------------------------------------------------------------------------------------------


def test_the_names_of_a_new_log_are_durable(tmp_path: Path, synced: list[str]) -> None:
    made = project(tmp_path)
    made.registry().append([selected(1)])
    # Its folder's name, and the names of what lies in it.
    assert {"registry", made.folder().name, "pins", "keys"} <= set(synced)


def test_a_log_whose_beginning_was_cut_short_is_made_durable_with_its_key(at: Project, synced: list[str]) -> None:
    """The writer had died before the folder's name was synced: no key of the log is there."""
    folder = at.folder()
    shutil.rmtree(folder)
    for pin in pins_of(at).glob("*.json"):
        pin.unlink()
    at.lock_file.unlink()
    folder.mkdir()
    disk._kept.clear()
    at.registry().append([selected(1)])
    assert at.folder() == folder
    assert synced.index("registry") < synced.index(folder.name)
    assert at.registry().check() == []


def test_evidence_that_is_there_is_made_durable_and_left(at: Project, synced: list[str]) -> None:
    registry = at.registry()
    digest = registry.store_evidence(b"x" * 100)
    path = at.folder() / "evidence" / digest
    assert mode_of(path) == 0o444
    inode = path.stat().st_ino
    synced.clear()
    assert registry.store_evidence(b"x" * 100) == digest
    assert synced == ["evidence"], "whoever put it there may have been killed before its name was durable"
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("place", ["folder", "evidence", "lock", "pin"])
def test_what_a_killed_writer_left_beside_a_file_is_swept(at: Project, place: str) -> None:
    registry = at.registry()
    registry.store_evidence(b"x")
    (pin,) = pins_of(at).glob("*.json")
    whole = {
        "folder": at.folder() / "checkpoint",
        "evidence": at.folder() / "evidence" / ("0" * 64),
        "lock": at.lock_file,
        "pin": pin,
    }[place]
    left = whole.with_name(f".{whole.name}.tmp-01234567")
    left.write_bytes(b"half")
    at.registry().append([selected(2)])
    assert not left.exists()


# --- what is read again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "pin gone", "checkpoint rewritten", "tail"])
def test_an_append_reads_the_log_again_where_it_is_not_as_it_left_it(
    at: Project, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    registry = at.registry()
    registry.append([selected(2)])
    (pin,) = pins_of(at).glob("*.json")
    if what == "pin gone":
        pin.unlink()
    elif what == "checkpoint rewritten":
        other = copy_of(at, "other")
        other.registry().append([selected(3)])
        for name in ("log.jsonl", "checkpoint"):
            shutil.copy(other.folder() / name, at.folder() / name)
    elif what == "tail":
        with at.log().open("ab") as file:
            file.write(b'{"torn":')
    verified = verified_logs(monkeypatch)
    registry.append([selected(4)])
    assert bool(verified) is (what != "nothing")
    monkeypatch.undo()
    assert at.registry().check() == []


def test_the_log_of_another_is_read_once_while_it_stays(at: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    other = copy_of(at, "other", "stranger")
    registry = other.registry()
    registry.append([selected(2)])
    seen = verified_logs(monkeypatch)
    registry.append([selected(3)])
    assert seen == []
    at.registry().append([selected(4)])
    seen.clear()
    for name in ("log.jsonl", "checkpoint"):
        shutil.copy(at.folder() / name, other.root / at.folder().name / name)
    registry.append([selected(5)])
    assert seen == [at.folder().name]


# --- pins and ingot.lock -------------------------------------------------------------------------------------


def test_the_logs_of_others_are_pinned_as_far_as_they_were_seen(at: Project) -> None:
    (first,) = at.registry().heads()
    other = copy_of(at, "other", "stranger")
    registry = other.registry()
    own = registry.append([selected(2)])[0].origin
    pin = next(pin for pin in read_lock(other.lock_file) if pin.origin == first)
    head = other.registry().heads()[first]
    assert (pin.size, pin.root.hex()) == (head.size, head.root)
    assert pin.vkey == str(logs_in(at.root)[0].vkey())
    state = StatePins(pins_of(other))
    found = state.read(first)
    assert found is not None
    assert found[0] == pin
    begun = next(entry for entry in registry.entries(own) if entry.type == "origin")
    assert begun.statement["predicate"]["seen"] == [{"origin": first, "size": head.size, "root": head.root}]


def test_a_pin_of_another_log_is_not_set_back(at: Project) -> None:
    """What was seen of a log once is not forgotten because an older state of it is checked out."""
    (first,) = at.registry().heads()
    older = copy_of(at, "older", "stranger")
    at.registry().append([selected(2)])
    newer = copy_of(at, "newer", "stranger")
    newer.registry().append([selected(3)])
    pins = StatePins(pins_of(newer))
    found = pins.read(first)
    assert found is not None
    assert found[0].size == 3
    older.registry().append([selected(4)])
    assert pins.read(first) == found


def test_a_pin_in_the_lock_of_a_log_that_is_not_there_stays(at: Project) -> None:
    pins = read_lock(at.lock_file)
    key = SigningKey.generate("ingot.local/0123456789ab").verifier()
    gone = Pin(key.name, 7, b"\1" * 32, str(key))
    at.lock_file.write_bytes(encode_lock([*pins, gone]))
    registry = at.registry()
    registry.append([selected(2)])
    found = {pin.origin: pin.size for pin in read_lock(at.lock_file)}
    assert found == {pins[0].origin: 3, gone.origin: 7}
    registry.verify_own()
    registry.verify_own()
    (notice,) = registry.notices
    assert notice == (
        f"ingot.lock pins {gone.origin} with 7 entries, and registry/0123456789ab is gone: restore it from git or a "
        "backup; without it nothing of what it recorded is known"
    )


def test_a_lock_that_says_it_already_is_not_written_again(at: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = at.registry()
    write = disk.write_file_atomic
    written: list[str] = []

    def noted(path: Path, *rest: object, **more: object) -> None:
        written.append(path.name)
        write(path, *rest, **more)  # type: ignore[arg-type]
        if path.name == "checkpoint":
            # Another process was quicker, or git merged it in.
            at.lock_file.write_bytes(encode_lock([_pin(at)]))

    monkeypatch.setattr(disk, "write_file_atomic", noted)
    registry.append([selected(2)])
    assert "checkpoint" in written
    assert at.lock_file.name not in written


def _pin(at: Project) -> Pin:
    (log,) = logs_in(at.root)
    checkpoint = log.checkpoint()
    assert checkpoint is not None
    return Pin(log.origin, checkpoint.size, checkpoint.root, str(log.vkey()))


def test_a_lock_that_cannot_be_read_is_told_of_once_and_left(at: Project) -> None:
    at.lock_file.write_bytes(b"no lock\n")
    registry = at.registry()
    for number in (2, 3):
        registry.append([selected(number)])
    assert at.lock_file.read_bytes() == b"no lock\n"
    assert len(registry.notices) == len(set(registry.notices)) == 2
    assert registry.notices[1].startswith("ingot.lock was not updated: ")
    assert at.registry().heads()[_pin(at).origin].size == 4


# --- a commit that was cut short -----------------------------------------------------------------------------


def test_a_pinned_commit_is_completed_only_with_its_own_lines(at: Project) -> None:
    (origin,) = at.registry().heads()
    before = {name: (at.folder() / name).read_bytes() for name in ("log.jsonl", "checkpoint")}
    at.registry().append([selected(2)])
    after = {name: (at.folder() / name).read_bytes() for name in ("log.jsonl", "checkpoint")}
    # Died between pin and checkpoint: it is completed by whoever appends next, in the same log.
    (at.folder() / "checkpoint").write_bytes(before["checkpoint"])
    assert [ref.origin for ref in at.registry().append([selected(3)])] == [origin]
    assert at.log().read_bytes().startswith(after["log.jsonl"])
    # The pin's lines are gone: what is there is older, and another log is begun.
    for name, data in before.items():
        (at.folder() / name).write_bytes(data)
    registry = at.registry()
    assert registry.append([selected(4)])[0].origin != origin
    assert "is older than the newest seen of it" in registry.notices[0]


def test_a_commit_that_was_cut_short_is_completed_before_anything_is_built(at: Project) -> None:
    before = at.checkpoint().read_bytes()
    at.registry().append([selected(2)])
    after = at.checkpoint().read_bytes()
    at.checkpoint().write_bytes(before)
    at.registry().verify_own()
    assert at.checkpoint().read_bytes() == after


def test_a_pin_that_nobody_signed_completes_nothing(at: Project) -> None:
    before = (at.folder() / "checkpoint").read_bytes()
    at.registry().append([selected(2)])
    (pin,) = pins_of(at).glob("*.json")
    pin.write_text(pin.read_text().replace("\\n\\n— ", "\\n\\n— x", 1))
    (at.folder() / "checkpoint").write_bytes(before)
    with pytest.raises(RegistryDamaged):
        at.registry().append([selected(3)])
    assert (at.folder() / "checkpoint").read_bytes() == before
