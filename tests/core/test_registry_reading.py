"""Reading a registry: what is read again and what is not, and what no reader takes on trust."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.core.digest import sha256_bytes
from ingot.core.log import START, Log, Prefix, decode_line, encode_line, logs_in
from ingot.core.note import Checkpoint, SigningKey
from ingot.core.pins import Pin, StatePins, encode_lock, read_lock
from ingot.core.registry import Registry
from ingot.core.statement import MAX_LINE
from ingot.errors import DiskFailed, RegistryDamaged
from registrykit import Project, project, selected


@pytest.fixture
def at(tmp_path: Path) -> Project:
    """A log of four entries: its origin, and three."""
    made = project(tmp_path)
    made.registry().append([selected(number) for number in (1, 2, 3)])
    return made


@pytest.fixture
def read_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which entry on lines were read, each time."""
    found: list[int] = []
    verified = Log.verified

    def noted(self: Log, checkpoint: Checkpoint, start: Prefix = START, into: list[bytes] | None = None) -> Prefix:
        found.append(start.frontier.size)
        return verified(self, checkpoint, start, into)

    monkeypatch.setattr(Log, "verified", noted)
    return found


def origin_of(registry: Registry) -> str:
    (origin,) = registry.heads()
    return origin


def test_a_reader_reads_what_is_new_alone(at: Project, read_from: list[int]) -> None:
    registry = at.registry()
    assert len(list(registry.entries())) == 4
    assert list(registry.entries(since=4)) == []
    assert list(registry.entries(since=9)) == []
    assert read_from == [0], "nothing is new"
    at.registry().append([selected(4)])
    read_from.clear()
    assert [entry.index for entry in registry.entries(since=4)] == [4]
    assert [entry.index for entry in registry.entries(since=3)] == [3, 4]
    assert read_from == [4, 0]


def test_a_log_that_was_begun_and_never_committed_to_has_no_entries(at: Project) -> None:
    (at.root / "0123456789ab").mkdir()
    registry = at.registry()
    assert len(list(registry.entries())) == 4
    assert list(registry.entries("ingot.local/0123456789ab")) == []
    assert origin_of(registry) != "ingot.local/0123456789ab"
    registry.reread("ingot.local/0123456789ab")


def test_the_stamp_of_a_log_changes_with_its_lines(at: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = at.registry()
    origin, status = origin_of(registry), os.lstat(at.log())
    assert registry.stamp(origin) == (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    assert registry.stamp("ingot.local/000000000000") is None

    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("ingot.core.registry.os.lstat", refuse)
        with pytest.raises(DiskFailed):
            registry.stamp(origin)


def test_lines_that_changed_are_found_by_reading_them_again(at: Project) -> None:
    registry = at.registry()
    list(registry.entries())
    registry.reread(origin_of(registry))
    at.log().write_bytes(at.log().read_bytes().replace(b'"number":2', b'"number":7'))
    with pytest.raises(RegistryDamaged) as caught:
        registry.reread(origin_of(registry))
    assert caught.value.code == "E-REG-ROOT"
    with pytest.raises(RegistryDamaged):
        registry.prove(origin_of(registry))


@pytest.mark.parametrize("place", ["lock", "state"])
def test_a_log_is_proved_against_its_own_pins_alone(at: Project, place: str) -> None:
    registry = at.registry()
    origin, folder = origin_of(registry), at.home / "state" / "pins"
    assert not registry.is_proved(origin)
    registry.prove(origin)
    assert registry.is_proved(origin)
    pins = read_lock(at.lock_file)
    key = SigningKey.generate("ingot.local/0123456789ab").verifier()
    other = Pin(key.name, 2, b"\1" * 32, str(key))
    at.lock_file.write_bytes(encode_lock([*pins, other]))
    at.registry().prove(origin)
    if place == "lock":
        at.lock_file.write_bytes(encode_lock([Pin(origin, 4, b"\1" * 32, pins[0].vkey)]))
    else:
        lines = at.checkpoint().read_bytes().split(b"\n")
        lines[2] = base64.b64encode(b"\1" * 32)
        StatePins(folder).write(origin, b"\n".join(lines), pins[0].vkey)
    with pytest.raises(RegistryDamaged) as caught:
        at.registry().prove(origin)
    assert caught.value.code == "E-REG-FORK"


def test_pins_that_cannot_be_read_are_left_to_audit(at: Project) -> None:
    registry = at.registry()
    origin = origin_of(registry)
    at.lock_file.write_bytes(b"no lock\n")
    for pin in (at.home / "state" / "pins").glob("*.json"):
        pin.write_bytes(b"no pin\n")
    registry.prove(origin)
    assert registry.check() != []


def test_a_line_is_a_whole_line(at: Project) -> None:
    log = logs_in(at.root)[0]
    lines = at.log().read_bytes()
    assert log.length() == len(lines)
    assert [len(line) for line in log.scan()] == [len(line) for line in lines.splitlines()]
    at.log().write_bytes(lines + b"{}")
    assert len(list(log.scan())) == 4
    second = lines.index(b"\n") + 1
    assert len(list(log.scan(second))) == 3
    assert Log(at.root / "000000000000").length() == 0


def test_a_log_shows_its_checkpoint_as_it_lies_there(at: Project) -> None:
    assert logs_in(at.root)[0].signed_note() == at.checkpoint().read_bytes()
    at.checkpoint().unlink()
    with pytest.raises(RegistryDamaged, match="has no checkpoint"):
        logs_in(at.root)[0].signed_note()


def test_a_line_may_be_as_long_as_is_allowed_and_no_longer(at: Project) -> None:
    log = logs_in(at.root)[0]
    for length, found in ((MAX_LINE, 5), (MAX_LINE + 1, 4)):
        whole = at.log().read_bytes()
        at.log().write_bytes(whole + b"x" * length + b"\n")
        assert len(list(log.scan())) == found
        at.log().write_bytes(whole)


def test_more_lines_than_are_signed_are_asked_for(at: Project) -> None:
    log = logs_in(at.root)[0]
    three = log.read(3)
    assert (three.frontier.size, log.read(4, three).frontier.size, log.read(3, three)) == (3, 4, three)
    gathered: list[bytes] = [b"before"]
    log.read(4, three, gathered)
    assert (len(gathered), gathered[0]) == (2, b"before")
    gathered = [b"before"]
    log.read(3, log.read(2), gathered)
    assert len(gathered) == 2, "one more, and not all that there are"
    with pytest.raises(RegistryDamaged) as caught:
        log.read(6, three, [b"before"])
    assert "has 4 whole lines, but 6 are signed" in caught.value.what


@pytest.mark.parametrize(
    "change", [{"_type": "another"}, {"subject": {}}, {"predicateType": 3}, {"subject": None, "predicateType": None}]
)
def test_a_line_is_a_statement_in_every_part(change: dict[str, Any]) -> None:
    statement = selected(1)
    assert decode_line(encode_line(statement)) == statement
    with pytest.raises(ValueError, match="not an in-toto Statement"):
        decode_line(encode_line({**statement, **change}))


@pytest.mark.parametrize(
    ("call", "look"),
    [
        ("os.lstat", lambda log: log.length()),
        ("open_regular", lambda log: list(log.scan())),
        ("open_regular", lambda log: log.note()),
        ("os.listdir", lambda log: logs_in(log.folder.parent)),
    ],
)
def test_a_disk_that_cannot_be_read_is_named(
    at: Project, monkeypatch: pytest.MonkeyPatch, call: str, look: Callable[[Log], object]
) -> None:
    def fail(path: Path, *_more: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error", str(path))

    (log,) = logs_in(at.root)
    with monkeypatch.context() as patch:
        patch.setattr(f"ingot.core.log.{call}", fail)
        with pytest.raises(DiskFailed):
            look(log)


def test_evidence_is_what_its_name_says(at: Project) -> None:
    registry, data = at.registry(), b"evidence" * 40
    digest = registry.store_evidence(data)
    assert digest == sha256_bytes(data)
    assert at.registry().read_evidence(digest) == data
    path = logs_in(at.root)[0].evidence_path(digest)
    assert path.stat().st_mode & 0o777 == 0o444
    before = path.stat().st_mtime_ns
    assert registry.store_evidence(data) == digest
    assert path.stat().st_mtime_ns == before, "it is there"
    for wrong in ("../log.vkey", "a" * 63, "A" * 64):
        with pytest.raises(RegistryDamaged, match="not a digest"):
            logs_in(at.root)[0].evidence_path(wrong)
