"""What ``check`` finds: every tampering with a log is planted, and each has its code."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot.core.digest import canonical_json
from ingot.core.log import is_canonical
from ingot.core.log_audit import NOTES
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, SigningKey
from ingot.core.statement import build_statement
from ingot.errors import DiskFailed, RegistryDamaged
from registrykit import Project, codes, git, numbers, project, receipt, selected


def filled(tmp_path: Path, count: int = 4) -> Project:
    at = project(tmp_path)
    registry = at.registry()
    for number in range(1, count + 1):
        registry.append([selected(number)])
    return at


def rewrite(at: Project, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = at.log().read_bytes().split(b"\n")[:-1]
    at.log().write_bytes(b"".join(line + b"\n" for line in change(lines)))


def key_of(at: Project) -> SigningKey:
    (path,) = (at.home / "config" / "keys").iterdir()
    return SigningKey.parse(path.read_text().strip())


def sign_again(at: Project, key: SigningKey | None = None) -> None:
    """What a holder of the key can do: a valid signature over whatever the log says now."""
    lines = at.log().read_bytes().split(b"\n")[:-1]
    point = Checkpoint(f"ingot.local/{at.folder().name}", len(lines), root_of([leaf_hash(line) for line in lines]))
    at.checkpoint().write_bytes((key or key_of(at)).sign(point.text()))


def edited(line: bytes) -> bytes:
    return line.replace(b'"number":', b'"number":1')


TAMPERING: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edit-first": lambda lines: [lines[0].replace(b"origin:1", b"origin:2"), *lines[1:]],
    "edit-middle": lambda lines: [*lines[:2], edited(lines[2]), *lines[3:]],
    "edit-last": lambda lines: [*lines[:-1], edited(lines[-1])],
    "insert-first": lambda lines: [canonical_json(selected(9)), *lines],
    "insert-middle": lambda lines: [*lines[:2], canonical_json(selected(9)), *lines[2:]],
    "duplicate": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "swap": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "reverse": lambda lines: lines[::-1],
    "space": lambda lines: [*lines[:2], lines[2] + b" ", *lines[3:]],
    "crlf": lambda lines: [line + b"\r" for line in lines],
    "empty-line": lambda lines: [*lines[:2], b"", *lines[2:]],
}
SHORTENING: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "delete-first": lambda lines: lines[1:],
    "delete-middle": lambda lines: [*lines[:2], *lines[3:]],
    "delete-last": lambda lines: lines[:-1],
    "delete-all": lambda _lines: [],
    "join-two": lambda lines: [lines[0] + lines[1], *lines[2:]],
}


@pytest.mark.fault("T1", "a line is edited, deleted, inserted, moved, doubled or joined: audit finds it")
@pytest.mark.fault("T7", "an append on top of a log that was tampered with: refused, nothing is signed")
@pytest.mark.parametrize("name", [*TAMPERING, *SHORTENING])
def test_any_change_of_the_lines_is_found_and_never_signed(tmp_path: Path, name: str) -> None:
    at = filled(tmp_path)
    rewrite(at, {**TAMPERING, **SHORTENING}[name])
    before = at.checkpoint().read_bytes()
    assert ("root_mismatch" if name in TAMPERING else "log_truncated") in codes(at.registry())
    with pytest.raises(RegistryDamaged):
        list(at.registry().entries())
    with pytest.raises(RegistryDamaged) as caught:
        at.registry().append([selected(5)])
    assert caught.value.exit_code == 5
    assert at.checkpoint().read_bytes() == before


@pytest.mark.fault("T5", "the holder of the key rewrites the log and signs again: found with a pin")
@pytest.mark.parametrize("name", [*TAMPERING, *SHORTENING])
@pytest.mark.parametrize("pin", ["state", "lock"])
def test_the_holder_of_the_key_cannot_rewrite_what_is_pinned(tmp_path: Path, name: str, pin: str) -> None:
    at = filled(tmp_path)
    rewrite(at, {**TAMPERING, **SHORTENING}[name])
    if name != "delete-all":
        sign_again(at)
    else:
        at.checkpoint().unlink()
    if pin == "state":
        at.lock_file.unlink()
    else:
        shutil.rmtree(at.home / "state")
    found = codes(at.registry())
    if name in TAMPERING:
        assert "log_forked" in found
        with pytest.raises(RegistryDamaged) as caught:
            at.registry().append([selected(5)])
        assert caught.value.code == "E-REG-FORK"
    else:
        assert found & {"log_truncated", "log_behind"}


@pytest.mark.fault("T5", "the same without any pin: not found, as docs/promises.md says")
def test_without_a_pin_the_holder_of_the_key_is_not_found_out(tmp_path: Path) -> None:
    """The limit that docs/promises.md states."""
    at = filled(tmp_path)
    rewrite(at, TAMPERING["edit-middle"])
    sign_again(at)
    at.lock_file.unlink()
    shutil.rmtree(at.home / "state")
    assert codes(at.registry()) == set()


def test_every_bit_of_log_and_checkpoint_counts(tmp_path: Path) -> None:
    at = filled(tmp_path, 1)
    shutil.rmtree(at.home / "state")
    at.lock_file.unlink()
    for path in (at.log(), at.checkpoint(), at.folder() / "log.vkey"):
        data = path.read_bytes()
        for place in range(0, len(data), 3):
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(bytes(changed))
            assert codes(at.registry()) - NOTES, f"{path.name}: bit {place % 8} of byte {place}"
        path.write_bytes(data)
    assert codes(at.registry()) == set()


def old_state(at: Project) -> Callable[[], None]:
    """Remember log and checkpoint; the function puts them back."""
    kept = {path: path.read_bytes() for path in (at.log(), at.checkpoint())}

    def restore() -> None:
        for path, data in kept.items():
            path.write_bytes(data)

    return restore


@pytest.mark.fault("T4", "the log is cut to an older signed checkpoint: found by each pin")
def test_an_older_signed_checkpoint_is_found_by_each_pin(tmp_path: Path) -> None:
    at = filled(tmp_path, 1)
    git(at.tree, "init", "-q")
    restore = old_state(at)
    old_lock = at.lock_file.read_bytes()
    at.registry().append([selected(2)])
    git(at.tree, "add", "-A")
    git(at.tree, "commit", "-q", "-m", "state")
    restore()
    problems = at.registry().check()
    assert sorted((p["code"], p["detail"].split(":")[-1].strip()) for p in problems) == [
        ("log_behind", "nothing is appended to this log"),
        ("log_truncated", "ingot.lock as committed has 3 entries, now 2 are signed"),
        ("log_truncated", "ingot.lock has 3 entries, now 2 are signed"),
    ]
    at.lock_file.write_bytes(old_lock)
    assert [p["detail"] for p in at.registry().check() if p["code"] == "log_truncated"] == [
        "the log was truncated: ingot.lock as committed has 3 entries, now 2 are signed"
    ]
    shutil.rmtree(at.home / "state")
    assert codes(at.registry()) == {"log_truncated"}
    shutil.rmtree(at.tree / ".git")
    assert codes(at.registry()) == set()


@pytest.mark.fault("T4", "the log is gone: found by the lock")
def test_a_log_that_is_gone_is_found_by_the_lock(tmp_path: Path) -> None:
    at = filled(tmp_path)
    origin = f"ingot.local/{at.folder().name}"
    shutil.rmtree(at.root)
    assert at.registry().check() == [
        {"code": "log_missing", "where": origin, "detail": "pinned by ingot.lock, but its folder is gone"}
    ]


@pytest.mark.fault("T3", "the log is signed with a wrong key, its public key replaced too: audit finds it")
def test_a_wrong_key_is_found(tmp_path: Path) -> None:
    at = filled(tmp_path)
    other = SigningKey(f"ingot.local/{at.folder().name}", bytes(32))
    sign_again(at, other)
    assert codes(at.registry()) == {"signature_wrong"}
    # Replacing the public key as well makes the signature good; the pins remember the old one.
    (at.folder() / "log.vkey").write_text(f"{other.verifier()}\n")
    assert codes(at.registry()) == {"key_changed"}
    with pytest.raises(RegistryDamaged) as caught:
        at.registry().append([selected(5)])
    assert caught.value.code == "E-REG-KEY"


def spoil_signature(note: bytes) -> bytes:
    head, blob = note.rstrip(b"\n").rsplit(b" ", 1)
    data = bytearray(base64.b64decode(blob))
    data[-1] ^= 1
    return head + b" " + base64.b64encode(data) + b"\n"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (spoil_signature, "signature_wrong"),
        (lambda note: note.replace(b"\n5\n", b"\n4\n"), "signature_wrong"),
        (lambda note: note.replace(b"\n5\n", b"\n05\n"), "checkpoint_malformed"),
        (lambda note: note.replace(b"\n", b"\r\n"), "checkpoint_malformed"),
        (lambda note: note.replace(b"=\n\n", b"\n\n"), "checkpoint_malformed"),
        (lambda note: note.replace(b"ingot.local/", b"ingot.other/"), "checkpoint_malformed"),
        (lambda _note: b"", "checkpoint_malformed"),
        (lambda note: note + b"\n", "checkpoint_malformed"),
    ],
)
def test_a_changed_checkpoint_is_found(tmp_path: Path, change: Callable[[bytes], bytes], code: str) -> None:
    at = filled(tmp_path)
    at.checkpoint().write_bytes(change(at.checkpoint().read_bytes()))
    assert code in codes(at.registry())
    with pytest.raises(RegistryDamaged):
        at.registry().append([selected(5)])


def test_a_log_whose_writer_died_before_it_began_is_no_damage(tmp_path: Path) -> None:
    at = filled(tmp_path)
    begun = at.folder()
    (at.root / "00112233aabb").mkdir()
    assert codes(at.registry()) == set()
    for path in begun.iterdir():
        path.unlink()
    assert "key_malformed" in codes(at.registry()), "one that was seen before is"


@pytest.mark.parametrize("text", [None, "", "nonsense\n", f"{SigningKey('other', bytes(32)).verifier()}\n"])
def test_a_missing_or_malformed_public_key_is_found(tmp_path: Path, text: str | None) -> None:
    at = filled(tmp_path)
    path = at.folder() / "log.vkey"
    path.unlink() if text is None else path.write_text(text)
    assert codes(at.registry()) == {"key_malformed"}


SIGNED = (
    b'{"_type":"https://in-toto.io/Statement/v1","predicate":%s,"predicateType":"urn:ingot:selected:1","subject":[]}'
)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b"{}",
        SIGNED % b'{"a":1,"a":2}',
        SIGNED % b'{"a":NaN}',
        SIGNED % b'{"b":1,"a":2}',
        SIGNED % b'{"a": 1}',
        SIGNED % b'{"a":1.0}',
        SIGNED % b'{"a":1e999}',
        SIGNED % (b"[" * 5000 + b"]" * 5000),
        SIGNED % b'{"a":"\xff"}',
    ],
)
def test_a_malformed_line_is_found_even_when_it_is_signed(tmp_path: Path, line: bytes) -> None:
    at = filled(tmp_path)
    rewrite(at, lambda lines: [*lines, line])
    sign_again(at)
    problem = at.registry().check()[0]
    assert codes(at.registry()) == {"line_malformed"}
    assert problem["where"].endswith("log.jsonl:6")


def test_canonical_form_of_large_numbers() -> None:
    for value in (2.0**53, 1e20, 1e21, 1e17, 4.826773704224502e16):
        assert is_canonical(canonical_json({"a": value}))
    assert not is_canonical(b'{"a":1.0}')
    assert not is_canonical(b'{"a":9007199254740993}')


@pytest.mark.fault("T8", "lines that a dead writer left: noted, set aside, never signed")
def test_an_unsigned_tail_is_a_note_and_no_entry(tmp_path: Path) -> None:
    at = filled(tmp_path)
    tail = canonical_json(selected(9)) + b"\n" + b'{"half":'
    with at.log().open("ab") as file:
        file.write(tail)
    assert codes(at.registry()) == {"unsigned_tail"} <= NOTES
    assert numbers(at.registry()) == [1, 2, 3, 4]
    at.registry().append([selected(5)])
    assert numbers(at.registry()) == [1, 2, 3, 4, 5]
    (kept,) = at.quarantine.iterdir()
    assert kept.read_bytes() == tail
    assert codes(at.registry()) == set()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<<<<<<< HEAD\n",
        b"[]",
        b'{"format": 2, "checkpoints": {"": null}}',
        b'{"format": 1, "format": 1, "checkpoints": {"": null}}',
        b'{"format": 1, "checkpoints": {"ingot.local/a": 7, "": null}}',
        b'{"format": 1, "checkpoints": {"ingot.local/a": {"root": "AA", "size": 1, "vkey": "x"}, "": null}}',
    ],
)
def test_a_malformed_lock_file_is_found_and_left_alone(tmp_path: Path, data: bytes) -> None:
    at = filled(tmp_path)
    at.lock_file.write_bytes(data)
    assert codes(at.registry()) == {"lock_malformed"}
    registry = at.registry()
    registry.append([selected(5)])
    assert any("ingot.lock" in notice for notice in registry.notices)
    assert at.lock_file.read_bytes() == data


def test_a_lock_file_with_a_wrong_checkpoint_is_found(tmp_path: Path) -> None:
    at = filled(tmp_path)
    lock = json.loads(at.lock_file.read_text())
    for change in ({"size": 0}, {"size": True}, {"root": "AAAA"}, {"size": "5"}):
        ((origin, good), _end) = lock["checkpoints"].items()
        at.lock_file.write_text(json.dumps({"format": 1, "checkpoints": {origin: {**good, **change}, "": None}}))
        assert codes(at.registry()) == {"lock_malformed"}


def test_a_malformed_pin_is_found(tmp_path: Path) -> None:
    at = filled(tmp_path)
    (pin,) = (at.home / "state" / "pins").glob("*.json")
    for text in ("", "{}", '{"format": 1, "note": "x", "vkey": "y"}'):
        pin.write_text(text)
        assert codes(at.registry()) == {"pin_malformed"}
        with pytest.raises(RegistryDamaged):
            at.registry().append([selected(5)])


def test_a_repository_that_git_cannot_read_is_no_silent_pass(tmp_path: Path) -> None:
    at = filled(tmp_path)
    git(at.tree, "init", "-q")
    assert codes(at.registry()) == set()  # no commit yet
    git(at.tree, "commit", "-q", "--allow-empty", "-m", "no lock in it")
    assert codes(at.registry()) == set()
    (at.tree / ".git" / "config").write_text("[core\n")
    assert codes(at.registry()) == {"head_unreadable"}


def test_a_damaged_repository_and_a_missing_git_are_no_silent_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = filled(tmp_path)
    git(at.tree, "init", "-q")
    git(at.tree, "add", "ingot.lock")
    git(at.tree, "commit", "-q", "-m", "state")
    blob = git(at.tree, "rev-parse", "HEAD:ingot.lock").strip()
    path = at.tree / ".git" / "objects" / blob[:2] / blob[2:]
    kept = path.read_bytes()
    path.unlink()
    assert codes(at.registry()) == {"head_unreadable"}
    path.write_bytes(kept)
    assert codes(at.registry()) == set()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert codes(at.registry()) == {"head_unreadable"}


def test_evidence_is_checked(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()
    files = [{"path": f"{n:05}", "size": n, "sha256": "55" * 32, "xxh3_128": "66" * 16} for n in range(1000)]
    registry.append([build_statement(receipt(files=files), registry.store_evidence)])
    (path,) = (at.folder() / "evidence").iterdir()
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + b" ")
    assert codes(at.registry()) == {"evidence_damaged"}
    with pytest.raises(RegistryDamaged):
        at.registry().read_evidence(path.name)
    path.unlink()
    assert codes(at.registry()) == {"evidence_missing"}


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    at = filled(tmp_path)
    at.log().rename(tmp_path / "elsewhere")
    at.log().symlink_to(tmp_path / "elsewhere")
    assert "unreadable" in codes(at.registry())


def test_a_file_in_the_place_of_the_registry_is_named(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.root.write_bytes(b"")
    assert codes(at.registry()) == {"unreadable"}
    with pytest.raises(DiskFailed):
        list(at.registry().entries())
    with pytest.raises(DiskFailed):
        at.registry().append([selected(1)])


def test_entries_of_a_signed_malformed_line_are_refused(tmp_path: Path) -> None:
    at = filled(tmp_path)
    rewrite(at, lambda lines: [*lines, SIGNED % b'{"a":1,"a":2}'])
    sign_again(at)
    with pytest.raises(RegistryDamaged) as caught:
        list(at.registry().entries())
    assert caught.value.code == "E-REG-LINE"


def test_a_signing_key_of_another_log_is_refused(tmp_path: Path) -> None:
    at = filled(tmp_path)
    (path,) = (at.home / "config" / "keys").iterdir()
    path.write_text(f"{SigningKey('ingot.local/ffffffffffff', bytes(32))}\n")
    with pytest.raises(RegistryDamaged, match="the signing key") as caught:
        at.registry().append([selected(5)])
    assert caught.value.code == "E-REG-KEY"


def test_lines_lost_between_two_appends_of_one_process_stop_it(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()
    registry.append([selected(1), selected(2)])
    rewrite(at, SHORTENING["delete-last"])
    with pytest.raises(RegistryDamaged) as caught:
        registry.append([selected(3)])
    assert caught.value.code == "E-REG-TRUNCATED"


def test_another_log_whose_key_was_replaced_is_not_pinned(tmp_path: Path) -> None:
    ann, bob = project(tmp_path, "ann", "ann"), project(tmp_path, "bob", "bob")
    ann.registry().append([selected(1)])
    shutil.copytree(ann.root, bob.root)
    bob_log = bob.folder()
    bob.registry().append([selected(2)])
    lock = bob.lock_file.read_text()
    (line,) = [line for line in lock.splitlines() if bob_log.name in line]
    forger = SigningKey(f"ingot.local/{bob_log.name}", bytes(32))
    size, _, _ = (bob_log / "checkpoint").read_text().split("\n")[1:4]
    lines = (bob_log / "log.jsonl").read_bytes().split(b"\n")[:-1]
    point = Checkpoint(forger.name, int(size), root_of([leaf_hash(text) for text in lines]))
    (bob_log / "checkpoint").write_bytes(forger.sign(point.text()))
    (bob_log / "log.vkey").write_text(f"{forger.verifier()}\n")
    registry = bob.registry()
    registry.append([selected(3)])
    assert any("was not pinned" in notice for notice in registry.notices)
    assert line in bob.lock_file.read_text()
    assert codes(bob.registry()) == {"key_changed"}


@pytest.mark.fault("T8", "other lines lie where a dead writer left its own: never signed")
def test_other_lines_in_the_place_of_pinned_ones_are_not_signed(tmp_path: Path) -> None:
    """Only the very lines that the pin names complete a commit; with others the log is behind."""
    at = filled(tmp_path, 1)
    restore = old_state(at)
    (first,) = at.registry().append([selected(2)])
    restore()
    at.lock_file.unlink()
    with at.log().open("ab") as file:
        file.write(canonical_json(selected(3)) + b"\n")
    before = at.checkpoint().read_bytes()
    log, checkpoint = at.log(), at.checkpoint()
    assert codes(at.registry()) == {"log_behind", "unsigned_tail"}
    assert at.registry().append([selected(4)])[0].origin != first.origin
    assert checkpoint.read_bytes() == before
    assert b'"number":3' in log.read_bytes()


@pytest.mark.fault("T6", "two checkpoints of one size and different roots meet: both are shown")
def test_two_different_histories_of_one_origin_are_shown(tmp_path: Path) -> None:
    """A key copied to another machine, used in both places: found when the histories meet."""
    at = filled(tmp_path, 2)
    shutil.copytree(tmp_path / "project", tmp_path / "copy")
    shutil.copytree(at.home, tmp_path / "home-of-copy")
    other = project(tmp_path, "copy", "copy")
    at.registry().append([selected(3)])
    other.registry().append([selected(4)])
    shutil.rmtree(at.root)
    shutil.copytree(other.root, at.root)
    forks = [problem for problem in at.registry().check() if problem["code"] == "log_forked"]
    assert len(forks) == 2
    assert all("now" in problem["detail"] and "pinned" in problem["detail"] for problem in forks)


def test_damage_in_the_log_of_another_does_not_stop_us_and_is_not_pinned(tmp_path: Path) -> None:
    ann, bob = project(tmp_path, "ann", "ann"), project(tmp_path, "bob", "bob")
    ann.registry().append([selected(1)])
    shutil.copytree(ann.root, bob.root)
    log = bob.log()
    log.write_bytes(log.read_bytes().replace(b'"number":1', b'"number":2'))
    registry = bob.registry()
    (ref,) = registry.append([selected(3)])
    assert any("was not pinned" in notice for notice in registry.notices)
    assert set(json.loads(bob.lock_file.read_text())["checkpoints"]) == {ref.origin, ""}
    assert codes(bob.registry()) == {"root_mismatch"}
