"""Every live file of a registry, damaged bit by bit and rewritten by hand: ``audit`` finds all of it, nothing signs it.

All in one process, since there are thousands of cases; ``test_tampering.py`` shows the same through real commands.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.core.digest import canonical_json
from ingot.core.index import Index
from ingot.core.log import Log
from ingot.core.log_audit import NOTES
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, SigningKey
from ingot.core.seal import Seal
from ingot.core.statement import build_statement, decision_statement
from ingot.core.store import Store
from ingot.errors import DiskFailed, RegistryDamaged
from registrykit import DIGEST, Project, codes, project, receipt

#: All bits of a small file are tried, of a larger one this many.
_BITS_MAX = 1200


def selected(number: int) -> dict[str, Any]:
    """An entry that can be told from others by its number."""
    fields = {"target": "demo:gguf", "spec": "demo", "digest": DIGEST, "key": "22" * 32, "number": number}
    return decision_statement("selected", fields)


def filled(tmp_path: Path) -> Project:
    """A registry with every kind of live file, evidence included: an origin, a build and two decisions."""
    at = project(tmp_path)
    registry = at.registry()
    registry.append([build_statement(receipt()), selected(1)])
    registry.append([selected(2)])
    registry.store_evidence(b'[{"path": "a", "size": 1}]')
    assert registry.check() == []
    return at


LIVE: dict[str, Callable[[Project], Path]] = {
    "log.jsonl": lambda at: at.log(),
    "checkpoint": lambda at: at.checkpoint(),
    "log.vkey": lambda at: at.folder() / "log.vkey",
    "evidence": lambda at: next((at.folder() / "evidence").iterdir()),
    "ingot.lock": lambda at: at.lock_file,
    "state pin": lambda at: next((at.home / "state" / "pins").glob("*.json")),
}


def bits_of(path: Path, *, all_of_them: bool = False) -> list[int]:
    """Which bits of a file are flipped: all, or as many as are allowed, at random (the same ones each time)."""
    count = 8 * path.stat().st_size
    if count <= _BITS_MAX or all_of_them:
        return list(range(count))
    return sorted(random.Random(7).sample(range(count), _BITS_MAX))


@pytest.mark.fault("B1", "one bit of a live registry file is flipped: audit finds it")
@pytest.mark.parametrize("name", LIVE)
def test_every_flipped_bit_is_found(tmp_path: Path, name: str, cases: Callable[[int], None]) -> None:
    at = filled(tmp_path)
    chosen = bits_of(LIVE[name](at))
    flip_each(at, name, chosen)
    cases(len(chosen))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log.jsonl", "state pin", "ingot.lock"])
def test_every_bit_without_exception_is_found(tmp_path: Path, name: str) -> None:
    at = filled(tmp_path)
    flip_each(at, name, bits_of(LIVE[name](at), all_of_them=True))


def flip_each(at: Project, name: str, bits: list[int]) -> None:
    path = LIVE[name](at)
    whole = path.read_bytes()
    path.chmod(0o644)
    for bit in bits:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        assert codes(at.registry()) - NOTES, f"{name}: bit {bit % 8} of byte {bit // 8}"
    path.write_bytes(whole)
    assert at.registry().check() == []


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "cut by one byte": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: random.Random(len(data)).randbytes(len(data)),
    "doubled": lambda data: data + data,
    "space before": lambda data: b" " + data,
    "line feed before": lambda data: b"\n" + data,
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "line ends of Windows": lambda data: data.replace(b"\n", b"\r\n") if b"\n" in data else data + b"\r\n",
}
#: After the signed lines of a log anything is an unsigned tail, which is no entry: a note of its own.
AFTER: dict[str, Callable[[bytes], bytes]] = {
    "space after": lambda data: data + b" ",
    "line feed after": lambda data: data + b"\n",
    "zero after": lambda data: data + b"\0",
}


@pytest.mark.fault("B1", "a live registry file is emptied, cut, overwritten or padded: audit finds it")
@pytest.mark.parametrize("name", LIVE)
def test_every_other_shape_is_found(tmp_path: Path, name: str, cases: Callable[[int], None]) -> None:
    at = filled(tmp_path)
    path = LIVE[name](at)
    whole = path.read_bytes()
    path.chmod(0o644)
    shapes = SHAPES if name == "log.jsonl" else SHAPES | AFTER
    for shape, change in shapes.items():
        if shape == "doubled" and name == "log.jsonl":
            continue
        path.write_bytes(change(whole))
        assert codes(at.registry()) - NOTES, shape
    if name == "log.jsonl":
        for change in (*AFTER.values(), SHAPES["doubled"]):
            path.write_bytes(change(whole))
            assert codes(at.registry()) == {"unsigned_tail"}
    cases(len(SHAPES) + len(AFTER))


@pytest.mark.fault("B1", "a live registry file becomes a link, a folder or a pipe: audit finds it and does not hang")
@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "gone"])
def test_what_is_no_file_is_found(tmp_path: Path, name: str, kind: str) -> None:
    at = filled(tmp_path)
    path = LIVE[name](at)
    aside = tmp_path / "aside"
    path.rename(aside)
    if kind == "link":
        path.symlink_to(aside)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    if kind == "gone" and name in ("ingot.lock", "state pin", "evidence"):
        # What was never pinned cannot be missed, nor can evidence that no entry names.
        assert at.registry().check() == []
        return
    assert codes(at.registry()) - NOTES


@pytest.mark.fault("B1", "spaces are added to a pin without changing what it says: audit finds it")
def test_a_change_of_white_space_alone_is_found(tmp_path: Path, cases: Callable[[int], None]) -> None:
    at = filled(tmp_path)
    tried = 0
    for name, code in (("ingot.lock", "lock_malformed"), ("state pin", "pin_malformed")):
        path = LIVE[name](at)
        whole = path.read_bytes()
        for old, new in ((b": ", b":  "), (b",", b" ,"), (b"\n", b"\n\n"), (b'{"', b'{ "'), (b'"f', b'"\\u0066')):
            if old in whole:
                path.write_bytes(whole.replace(old, new, 1))
                assert codes(at.registry()) == {code}, (name, old)
                tried += 1
        path.write_bytes(whole)
    assert tried >= 8
    assert at.registry().check() == []
    cases(tried)


# --- changed by hand, without and with the key ----------------------------------------------------------------------


def key_of(at: Project) -> SigningKey:
    return SigningKey.parse(next((at.home / "config" / "keys").iterdir()).read_text().strip())


def lines_of(at: Project) -> list[bytes]:
    return at.log().read_bytes().split(b"\n")[:-1]


def signed(at: Project, lines: list[bytes], key: SigningKey | None = None) -> bytes:
    """The checkpoint that the holder of a key can make for these lines."""
    point = Checkpoint(f"ingot.local/{at.folder().name}", len(lines), root_of([leaf_hash(line) for line in lines]))
    return (key or key_of(at)).sign(point.text())


def signature_of(note: bytes) -> bytes:
    return note.split(b"\n")[-2]


def spoiled(signature: bytes) -> bytes:
    """The same signature line with one bit of the signature changed."""
    head, blob = signature.rsplit(b" ", 1)
    data = bytearray(base64.b64decode(blob))
    data[-1] ^= 1
    return head + b" " + base64.b64encode(data)


def loose(signature: bytes) -> bytes:
    """The same bytes in another base64 spelling: a bit that decodes to nothing is set."""
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = signature.rstrip(b"=")
    assert body != signature
    return body[:-1] + bytes([digits[digits.index(body[-1]) ^ 1]]) + signature[len(body) :]


def with_signatures(note: bytes, count: int) -> bytes:
    other = signature_of(SigningKey("witness", bytes(32)).sign("x\n"))
    return note + (count - 1) * (other + b"\n")


NOTES_BY_HAND: dict[str, Callable[[Project, bytes], bytes]] = {
    "signed by a wrong key of the same name": lambda at, _note: signed(
        at, lines_of(at), SigningKey(f"ingot.local/{at.folder().name}", bytes(32))
    ),
    "signed by an unknown key alone": lambda at, note: note.replace(
        signature_of(note), signature_of(SigningKey("witness", bytes(32)).sign("x\n"))
    ),
    "a second signature that fails": lambda _at, note: note + spoiled(signature_of(note)) + b"\n",
    "17 signatures": lambda _at, note: with_signatures(note, 17),
    "64 KiB": lambda _at, note: note.replace(b"\n\n", b"\n" + b"x" * 65_536 + b"\n\n"),
    "CRLF": lambda _at, note: note.replace(b"\n", b"\r\n"),
    "NUL": lambda _at, note: note.replace(b"\n4\n", b"\n4\0\n"),
    "base64 in another spelling": lambda _at, note: note.replace(signature_of(note), loose(signature_of(note))),
    "a leading zero in the size": lambda _at, note: note.replace(b"\n4\n", b"\n04\n"),
    "one more blank line": lambda _at, note: note.replace(b"\n\n", b"\n\n\n"),
    "a blank line at the end": lambda _at, note: note + b"\n",
    "another size": lambda _at, note: note.replace(b"\n4\n", b"\n3\n"),
    "a line more in the text": lambda at, note: key_of(at).sign(note.decode().split("\n\n")[0] + "\nmore\n"),
}


@pytest.mark.fault("T3", "the checkpoint's note is written by hand: audit finds it, nothing is built on it or signed")
@pytest.mark.parametrize("name", NOTES_BY_HAND)
def test_a_note_written_by_hand_is_refused(tmp_path: Path, name: str) -> None:
    at = filled(tmp_path)
    index_of(at).save()
    note = NOTES_BY_HAND[name](at, at.checkpoint().read_bytes())
    at.checkpoint().write_bytes(note)
    assert codes(at.registry()) - NOTES
    with pytest.raises(RegistryDamaged):
        at.registry().append([selected(3)])
    assert at.checkpoint().read_bytes() == note, "nothing was signed"


@pytest.mark.fault("T3", "16 signatures, 15 of them by unknown witnesses: passed over, as the format wants")
def test_signatures_of_witnesses_are_no_damage(tmp_path: Path) -> None:
    at = filled(tmp_path)
    at.checkpoint().write_bytes(with_signatures(at.checkpoint().read_bytes(), 16))
    assert at.registry().check() == []


@pytest.mark.fault("T5", "the holder of the key rewrites record 3 and signs again: found with a pin")
@pytest.mark.parametrize("pin", ["ingot.lock", "state pin"])
def test_the_key_holder_is_found_out_by_a_pin(tmp_path: Path, pin: str) -> None:
    at = filled(tmp_path)
    rewrite_record_3(at)
    (at.lock_file if pin == "state pin" else LIVE["state pin"](at)).unlink()
    assert "log_forked" in codes(at.registry())
    with pytest.raises(RegistryDamaged, match="not those that were seen before"):
        index_of(at)


@pytest.mark.fault("T5", "the same without any pin: not found, as docs/promises.md says")
def test_the_key_holder_is_not_found_out_without_a_pin(tmp_path: Path) -> None:
    at = filled(tmp_path)
    rewrite_record_3(at)
    at.lock_file.unlink()
    LIVE["state pin"](at).unlink()
    assert at.registry().check() == []
    assert index_of(at).latest["demo:gguf"]["digest"] == "ef" * 32


def rewrite_record_3(at: Project) -> None:
    lines = lines_of(at)
    lines[3] = lines[3].replace(b"ab" * 32, b"ef" * 32)
    at.log().write_bytes(b"".join(line + b"\n" for line in lines))
    at.checkpoint().write_bytes(signed(at, lines))


# --- what the reading commands notice -------------------------------------------------------------------------------


def index_of(at: Project) -> Index:
    """The index as a reading command opens it: from the cache where that holds, brought up to date."""
    index = Index(at.registry(), Store(at.tree / "cache", Seal(at.home / "seal")))
    index.sync()
    return index


def replaced(at: Project, lines: list[bytes], *, keep_time: bool = True) -> None:
    status = at.log().stat()
    at.log().write_bytes(b"".join(line + b"\n" for line in lines))
    if keep_time:
        os.utime(at.log(), ns=(status.st_atime_ns, status.st_mtime_ns))


BEHIND: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edit, same size": lambda lines: [*lines[:2], lines[2].replace(b'"number":1', b'"number":7'), *lines[3:]],
    "edit, longer": lambda lines: [*lines[:2], lines[2].replace(b'"number":1', b'"number":77'), *lines[3:]],
    "delete": lambda lines: [*lines[:2], *lines[3:]],
    "insert": lambda lines: [*lines[:2], canonical_json(selected(9)), *lines[2:]],
    "reorder": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "duplicate": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "cut": lambda lines: lines[:-1],
    "empty": lambda _lines: [],
}


@pytest.mark.fault("T1", "lines change behind the checkpoint's back: plan, why, show and a run without work notice")
@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("known", [True, False], ids=["index at hand", "no index"])
def test_lines_changed_behind_the_checkpoint_are_noticed(tmp_path: Path, name: str, known: bool) -> None:
    at = filled(tmp_path)
    if known:
        index_of(at).save()
    replaced(at, BEHIND[name](lines_of(at)))
    with pytest.raises(RegistryDamaged) as caught:
        index_of(at)
    assert caught.value.code in {"E-REG-ROOT", "E-REG-TRUNCATED"}
    assert codes(at.registry()) & {"root_mismatch", "log_truncated"}


@pytest.mark.fault("T3", "lines and checkpoint are rewritten without the key: plan, why and show refuse them")
@pytest.mark.parametrize("key", ["of another", "replaced too"])
@pytest.mark.parametrize("known", [True, False], ids=["index at hand", "no index"])
def test_a_checkpoint_that_nobody_signed_is_not_taken_in(tmp_path: Path, key: str, known: bool) -> None:
    at = filled(tmp_path)
    if known:
        index_of(at).save()
    forger = SigningKey(f"ingot.local/{at.folder().name}", bytes(32))
    replaced(at, BEHIND["edit, same size"](lines_of(at)))
    at.checkpoint().write_bytes(signed(at, lines_of(at), forger))
    if key == "replaced too":
        (at.folder() / "log.vkey").write_text(f"{forger.verifier()}\n")
    with pytest.raises(RegistryDamaged) as caught:
        index_of(at)
    assert caught.value.code in {"E-REG-SIGNATURE", "E-REG-KEY"}


def test_lines_with_a_known_stat_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = filled(tmp_path)
    wait_until_settled(at)
    index_of(at).save()
    read: list[Path] = []
    real = Log.scan

    def scan(log: Log, offset: int = 0) -> Iterator[bytes]:
        read.append(log.lines_path)
        return real(log, offset)

    monkeypatch.setattr(Log, "scan", scan)
    index = index_of(at)
    index.sync()
    assert read == []
    os.utime(at.log())
    index.sync()
    index.sync()
    assert read == [at.log()], "another stat: read once, and known from then on"


def test_the_stat_of_a_moment_ago_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the clock a file may change again and keep its stat."""
    at = filled(tmp_path)
    # However long a loaded machine takes to come here.
    monkeypatch.setattr(time, "time_ns", lambda: at.log().stat().st_ctime_ns + 1_000_000)
    index_of(at).save()
    content = Seal(at.home / "seal").unwrap("index.json", (at.tree / "cache" / "index.json").read_bytes())
    assert content is not None
    assert json.loads(content)["stamps"] == {}


def wait_until_settled(at: Project) -> None:
    """A change within the last tick of the clock is never taken for settled, and ctime cannot be set."""
    while time.time_ns() - at.log().stat().st_ctime_ns < 150_000_000:
        time.sleep(0.02)


def test_an_unsigned_tail_stops_no_reader(tmp_path: Path) -> None:
    at = filled(tmp_path)
    index_of(at).save()
    with at.log().open("ab") as file:
        file.write(b'{"half":')
    assert index_of(at).latest
    assert codes(at.registry()) == {"unsigned_tail"}


@pytest.mark.fault("T1", "lines change while a run goes on: its next step stops")
def test_lines_changed_during_a_run_are_noticed_by_it(tmp_path: Path) -> None:
    at = filled(tmp_path)
    index = index_of(at)
    replaced(at, BEHIND["edit, same size"](lines_of(at)))
    with pytest.raises(RegistryDamaged):
        index.sync()


@pytest.mark.fault("T1", "a folder of the registry is unreadable or gone: said, never taken for an empty log")
def test_a_log_that_cannot_be_looked_at_is_no_empty_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = filled(tmp_path)
    index_of(at).save()

    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("ingot.core.registry.os.lstat", refuse)
        with pytest.raises(DiskFailed):
            index_of(at)
    shutil.rmtree(at.root)
    assert codes(at.registry()) == {"log_missing"}
