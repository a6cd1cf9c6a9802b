"""What a store is made of: sealing an output, results filed by key, links for people, unsigned lines set aside."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingot.core import disk, sealing
from ingot.core.digest import record_files
from ingot.core.log import Log
from ingot.core.log_tail import quarantine_tail
from ingot.core.seal import Seal
from ingot.core.store import Store
from ingot.errors import DiskFailed, StageFailed
from storekit import FILES, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", Seal(tmp_path / "seal"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What a stage wrote: two files, one of them two folders deep."""
    folder = tmp_path / "out"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"alpha")
    (folder / "deep" / "er" / "b.bin").write_bytes(b"beta")
    return folder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# --- sealing -------------------------------------------------------------------------------------------------


def test_a_sealed_output_is_read_only_but_for_its_own_folder(out: Path) -> None:
    out.chmod(0o500)
    (out / "deep").chmod(0o700)
    statuses, records = sealing.sealed(out, ())
    assert mode_of(out) == 0o755, "it is to be renamed"
    assert {mode_of(out / name) for name in ("deep", "deep/er")} == {0o555}
    assert {mode_of(out / record.path) for record in records} == {0o444}
    assert {name: status.st_ino for name, status in statuses.items()} == {
        name: os.lstat(out / name).st_ino for name in ("a.txt", "deep/er/b.bin")
    }


@pytest.mark.parametrize(
    ("instead", "code"), [("nothing", "E-OUTPUT-EMPTY"), ("file", "E-OUTPUT-FILE"), ("link", "E-OUTPUT-FILE")]
)
def test_another_thing_in_place_of_the_output_is_refused(tmp_path: Path, instead: str, code: str) -> None:
    path = tmp_path / "gone"
    if instead == "file":
        path.write_bytes(b"x")
    elif instead == "link":
        path.symlink_to(tmp_path)
    with pytest.raises(StageFailed) as caught:
        sealing.sealed(path, ())
    assert caught.value.code == code


@pytest.mark.parametrize("odd", ["empty folder", "hard link"])
def test_what_is_refused_is_left_as_it_was(out: Path, odd: str) -> None:
    (out / "deep" / "none").mkdir() if odd == "empty folder" else (out / "second").hardlink_to(out / "a.txt")
    with pytest.raises(StageFailed, match=odd):
        sealing.sealed(out, ())
    assert mode_of(out / "deep" / "er" / "b.bin") & 0o200


def test_files_are_synced_before_folders_and_folders_from_the_leaves_up(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(disk, "fsync_file", lambda path: done.append(("file", path.name)))
    monkeypatch.setattr(disk, "fsync_dir", lambda path: done.append(("folder", path.name)))
    sealing.sync_tree(out, record_files(out, ()))
    assert sorted(done[:2]) == [("file", "a.txt"), ("file", "b.bin")]
    assert done[2:] == [("folder", "er"), ("folder", "deep"), ("folder", "out")]


def test_small_files_are_read_back_from_the_medium_and_large_ones_from_memory(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(disk, "forget_cached", lambda path: forgotten.append(path.name))
    monkeypatch.setattr(sealing, "_FROM_MEDIUM_MAX", 4)
    sealing.read_back(out, record_files(out, ()))
    assert forgotten == ["b.bin"], "four bytes, and not five"
    monkeypatch.undo()
    assert sealing._FROM_MEDIUM_MAX == 2**30


@pytest.mark.parametrize("wrong", [{"size": 3}, {"xxh3_128": "0" * 32}], ids=lambda wrong: next(iter(wrong)))
def test_what_is_read_back_must_be_what_was_hashed(out: Path, wrong: dict[str, Any]) -> None:
    first, *rest = record_files(out, ())
    with pytest.raises(DiskFailed) as caught:
        sealing.read_back(out, [replace(first, **wrong), *rest])
    assert caught.value.code == "E-CHANGED"


# --- results by key ------------------------------------------------------------------------------------------


def built(digest: str, finished: str, origin: str = "o", index: int = 1) -> dict[str, Any]:
    return {"origin": origin, "index": index, "digest": digest, "timings": {"finished": finished}}


def test_results_are_oldest_first_and_then_by_their_place(store: Store) -> None:
    accepted = {"origin": "o", "index": 9, "digest": "c", "accepted": {"time": "2026-01-02"}}
    found = [built("e", "2026-01-03"), built("d", "2026-01-02", "p"), built("b", "2026-01-02", "o", 2), accepted]
    store.file_results({"k": [*found, built("a", "2026-01-01", "z", 7)]})
    assert [it["digest"] for it in store.read_result("k")] == ["a", "b", "c", "d", "e"]


def test_what_is_filed_anew_takes_the_place_of_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    write = disk.write_file_atomic

    def noted(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
        told.append(durable)
        write(path, data, mode, durable=durable)

    monkeypatch.setattr(disk, "write_file_atomic", noted)
    store.add_result("old", built("a", "2026"))
    store.file_results({"new": [built("b", "2026")]})
    assert (store.read_result("old"), len(store.read_result("new"))) == ([], 1)
    assert not any(told), "they are derived"
    store.file_results({})
    assert list((store.root / "results").iterdir()) == []


@pytest.mark.parametrize("content", ['{"format": 2, "builds": []}', "[]", '{"format": 1, "builds": {}}', "3"])
def test_results_of_another_form_are_damaged(store: Store, content: str) -> None:
    (store.root / "results").mkdir(parents=True)
    path = store.root / "results" / "k.json"
    path.write_bytes(store.seal.wrap("results/k.json", content.encode()))
    assert store.result("k") is None
    path.write_bytes(store.seal.wrap("results/k.json", b'{"format": 1, "builds": []}'))
    assert store.result("k") == []
    path.write_bytes(store.seal.wrap("results/other.json", b'{"format": 1, "builds": []}'))
    assert store.result("k") is None, "filed under another name"


def test_results_that_may_not_be_read_are_not_taken_for_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_result("k", built("a", "2026"))

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DiskFailed):
        store.result("k")


def test_results_are_json_under_their_key(store: Store) -> None:
    store.add_result("k", built("a", "2026"))
    content = store.seal.unwrap("results/k.json", (store.root / "results" / "k.json").read_bytes())
    assert content is not None
    assert json.loads(content) == {"format": 1, "key": "k", "builds": [built("a", "2026")]}


# --- links for people ----------------------------------------------------------------------------------------


def test_a_link_is_made_once_moved_and_removed(store: Store) -> None:
    first, _files = publish(store, FILES)
    second, _files = publish(store, {"b": b"beta"})
    assert not store.unlink_latest("s", "t")
    assert not store.is_linked("s", "t")
    link = store.link_latest("s", "t", first)
    assert link == store.root / "latest" / "s" / "t"
    inode = os.lstat(link).st_ino
    assert store.link_latest("s", "t", first) == link
    assert os.lstat(link).st_ino == inode
    assert (store.is_linked("s", "t"), store.has_latest("s", "t", first)) == (True, True)
    assert not store.has_latest("s", "t", second)
    store.link_latest("s", "t", second)
    assert (link / "b").read_bytes() == b"beta"
    assert store.unlink_latest("s", "t")
    assert not os.path.lexists(link)
    assert store.object_path(second).is_dir()


def test_what_is_no_link_is_left(store: Store) -> None:
    place = store.root / "latest" / "s" / "t"
    place.mkdir(parents=True)
    assert (store.unlink_latest("s", "t"), store.is_linked("s", "t"), place.is_dir()) == (False, False, True)
    assert not store.has_latest("s", "t", "0" * 64)


# --- unsigned lines ------------------------------------------------------------------------------------------


def test_unsigned_lines_are_set_aside_whole(tmp_path: Path) -> None:
    log, aside = Log(tmp_path / "0123456789ab"), tmp_path / "quarantine"
    assert quarantine_tail(log, 0, aside) is None
    log.folder.mkdir()
    log.lines_path.write_bytes(b"one\ntwo\n")
    assert quarantine_tail(log, 8, aside) is None
    assert quarantine_tail(log, 9, aside) is None
    assert not aside.exists()
    target = quarantine_tail(log, 4, aside)
    assert target is not None
    assert target.parent == aside
    assert (target.read_bytes(), log.lines_path.read_bytes()) == (b"two\n", b"one\n")
