"""The store: what is durable before what, what is read again, and what it leaves behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ingot.core import disk, staging
from ingot.core import store as module
from ingot.core.digest import fast_hash_file
from ingot.core.store import Store
from ingot.errors import DiskFailed, StoreDamaged
from storekit import FILES, publish

SECRET = "token-0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: (call, name of the file or folder)."""
    found: list[tuple[str, str]] = []

    def told(name: str) -> Callable[..., Any]:
        call = getattr(disk, name)

        def note(*paths: Path, **options: Any) -> Any:
            found.append((name, paths[-1].name if name == "rename_durable" else paths[0].name))
            return call(*paths, **options)

        return note

    for name in ("fsync_dir", "rename_durable", "make_dirs_durable", "write_file_atomic"):
        monkeypatch.setattr(disk, name, told(name))
    return found


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that are read to be compared."""
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return fast_hash_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fast_hash_file", counting)
        yield read


# --- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_there_beside_the_listed_files_is_damage(store: Store, what: str) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest)
    os.chmod(path, 0o755)
    (path / "more").mkdir() if what == "folder" else (path / "more").symlink_to("a.txt")
    assert store.presence(digest, files)[0] == "damaged"


def test_a_file_that_may_not_be_looked_at_is_not_taken_for_absent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, files = publish(store, FILES)
    lstat = os.lstat

    def refuse(path: Path) -> os.stat_result:
        if str(path).endswith("a.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr("ingot.core.store.os.lstat", refuse)
    with pytest.raises(DiskFailed):
        store.presence(digest, files)
    with pytest.raises(DiskFailed):
        store.presence(digest, files, later=lambda _name: True)


def test_what_was_read_is_not_read_again_until_it_is_doubted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, files = publish(store, FILES)
    store.doubt(digest, "a.txt")
    with counted_reads(monkeypatch) as read:
        for _ in range(3):
            assert store.presence(digest, files)[0] == "present"
        assert read == ["a.txt"]


def test_a_stat_that_did_not_tell_of_damage_is_not_asked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, files = publish(store, FILES)
    with monkeypatch.context() as patch:
        patch.setattr("ingot.core.store.fast_hash_file", lambda _path: "0" * 32)
        assert store.presence(digest, files)[0] == "present"
        assert store.presence(digest, files, reread=True)[0] == "damaged"
        assert store.presence(digest, files)[0] == "damaged"


# --- staging -------------------------------------------------------------------------------------------------


def test_git_takes_nothing_of_the_cache_unless_somebody_says_so(store: Store) -> None:
    publish(store, FILES)
    ignored = store.root / ".gitignore"
    assert ignored.read_text() == "*\n"
    ignored.write_text("objects/\n")
    publish(store, {"b": b""})
    assert ignored.read_text() == "objects/\n"


def test_what_gc_needs_on_a_full_disk_is_there_before_it(store: Store) -> None:
    with store.staging():
        assert (store.root / "evicted").is_dir()
        assert (store.root / "trash").is_dir()


def test_the_logs_of_dead_builds_alone_are_searched_for_secrets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    log = store.root / "logs" / "s" / "a.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"it said {SECRET}\n")
    assert store.sweep_staging() == 0
    assert SECRET in log.read_text(), "somebody may be writing it"
    (store.root / "staging" / "0011223344556677" / "out").mkdir(parents=True)
    with store.staging():
        assert SECRET not in log.read_text()
        assert log.read_text().startswith("it said ")


# --- publishing ----------------------------------------------------------------------------------------------


def test_an_object_has_its_name_before_it_is_read_only_and_both_are_durable(
    store: Store, done: list[tuple[str, str]]
) -> None:
    digest, _files = publish(store, FILES)
    folder = digest[:2]

    def own() -> list[tuple[str, str]]:
        return [(call, name) for call, name in done if name in (digest, folder)]

    assert own() == [
        *[("make_dirs_durable", folder), ("rename_durable", digest), ("fsync_dir", folder), ("fsync_dir", digest)]
    ]
    done.clear()
    publish(store, FILES)
    # Whoever moved it in may have been killed before its name was durable.
    assert own() == [("make_dirs_durable", folder), ("fsync_dir", digest), ("fsync_dir", folder)]


def test_an_object_that_is_there_is_read_and_not_believed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest) / "a.txt"
    path.chmod(0o644)
    path.write_bytes(b"ALPHA")
    record = next(it for it in files if it["path"] == "a.txt")
    store.stats.put(f"objects/{digest}/a.txt", os.lstat(path), record["xxh3_128"], settled=True)
    assert store.presence(digest, files)[0] == "present", "a stat that vouches for other bytes"
    publish(store, FILES)
    assert path.read_bytes() == b"alpha"


def test_another_builder_that_was_quicker_is_no_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = disk.rename_durable
    synced: list[str] = []
    fsync = disk.fsync_dir

    def noted(path: Path) -> None:
        synced.append(path.name)
        fsync(path)

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(disk, "rename_durable", rename)
        publish(Store(store.root), FILES)
        monkeypatch.setattr(disk, "fsync_dir", noted)
        rename(source, target)

    monkeypatch.setattr(disk, "rename_durable", after_another)
    digest, files = publish(store, FILES)
    assert synced[:2] == [digest, digest[:2]]
    with counted_reads(monkeypatch) as read:
        assert store.presence(digest, files) == ("present", ())
    assert read, "the stats of what was not moved in are of other files"
    assert list((store.root / "staging").iterdir()) == []


def test_what_comes_back_is_evicted_no_more(store: Store) -> None:
    digest, files = publish(store, FILES)
    store.evict(digest)
    assert (store.is_evicted(digest), store.presence(digest, files)[0]) == (True, "missing")
    assert publish(store, FILES)[0] == digest
    assert not store.is_evicted(digest)


def test_what_is_measured_is_read_only_and_not_published(store: Store) -> None:
    with store.staging() as built:
        (built.out / "a.txt").write_bytes(b"alpha")
        digest, records = store.measure(built)
        assert stat.S_IMODE(built.out.stat().st_mode) == 0o555
        assert [record.path for record in records] == ["a.txt"]
    assert digest == publish(Store(store.root.with_name("other")), {"a.txt": b"alpha"})[0]
    assert list(store.objects()) == []


# --- what is set aside ---------------------------------------------------------------------------------------


def test_what_is_set_aside_can_be_deleted_and_is_told_of(store: Store) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest)
    (path / "a.txt").chmod(0o644)
    (path / "a.txt").write_bytes(b"ALPHA")
    kept = store.quarantine(digest, files)
    assert kept is not None
    assert kept.parent == store.root / "quarantine"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o755


def test_a_link_in_place_of_an_object_is_set_aside_alone(store: Store, tmp_path: Path) -> None:
    digest, files = publish(store, FILES)
    path, away = store.object_path(digest), tmp_path / "away"
    os.chmod(path, 0o755)
    path.rename(away)
    away.chmod(0o700)
    path.symlink_to(away)
    kept = store.quarantine(digest, files)
    assert kept is not None
    assert kept.is_symlink()
    assert stat.S_IMODE(away.stat().st_mode) == 0o700


def test_a_new_build_is_asked_for_until_it_was_made(store: Store) -> None:
    assert not store.is_forgotten("s:a")
    store.forget("s:a")
    assert store.is_forgotten("s:a")
    store.remember("s:a")
    store.remember("s:a")
    assert not store.is_forgotten("s:a")


def test_an_eviction_is_known_before_the_name_goes_and_the_name_before_the_bytes(
    store: Store, done: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _files = publish(store, FILES)
    done.clear()
    removed: list[str] = []
    remove = staging.remove_tree

    def noted(path: Path) -> None:
        removed.append(path.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755, "or nobody but root could have moved it"
        done.append(("remove", path.name))
        remove(path)

    monkeypatch.setattr(staging, "remove_tree", noted)
    (store.root / "trash" / "of-one-that-was-killed").mkdir()
    store.evict(digest)
    calls = [call for call, _name in done if call != "fsync_dir"]
    assert calls == ["make_dirs_durable", "write_file_atomic", "rename_durable", "remove", "remove"]
    assert done[0] == ("make_dirs_durable", "evicted")
    assert ("write_file_atomic", digest) in done
    assert sorted(name[:8] for name in removed) == sorted([digest[:8], "of-one-t"])
    assert list((store.root / "trash").iterdir()) == []
    assert not store.object_path(digest).exists()


def test_a_store_without_trash_has_none_to_empty(store: Store) -> None:
    store.empty_trash()
    assert not store.root.exists()


def test_what_is_discarded_leaves_no_mark(store: Store) -> None:
    digest, _files = publish(store, FILES)
    (store.root / "trash").rmdir()
    store.discard(digest)
    assert not store.object_path(digest).exists()
    assert not store.is_evicted(digest)


def test_a_mark_beside_an_object_is_told_and_taken_away(store: Store, done: list[tuple[str, str]]) -> None:
    assert store.returned() == []
    digest, _files = publish(store, FILES)
    other, _files = publish(store, {"b": b"beta"})
    for name in (digest, other):
        (store.root / "evicted" / name).touch()
    store.discard(other)
    assert store.returned() == [digest]
    os.chmod(store.object_path(digest), 0o755)
    done.clear()
    store.settle(digest)
    store.settle(other)
    assert stat.S_IMODE(store.object_path(digest).stat().st_mode) == 0o555
    assert done == [("fsync_dir", digest)]
    assert (store.is_evicted(digest), store.is_evicted(other)) == (False, True)
    assert store.returned() == []


def test_what_is_required_is_read_unless_its_stat_may_speak_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, files = publish(store, FILES)
    with counted_reads(monkeypatch) as read:
        assert store.require(digest, files, reread=False) == store.object_path(digest)
        assert read == []
        store.require(digest, files)
        assert len(read) == len(files)


def test_what_is_missing_or_damaged_says_what_to_do(store: Store) -> None:
    digest, files = publish(store, FILES)
    with pytest.raises(StoreDamaged) as caught:
        store.require("0" * 64, files)
    assert (caught.value.code, caught.value.hint) == ("E-OBJECT-MISSING", "run doit again to build it anew")
    path = store.object_path(digest) / "a.txt"
    path.chmod(0o644)
    path.write_bytes(b"ALPHA")
    with pytest.raises(StoreDamaged) as caught:
        store.require(digest, files)
    (kept,) = (store.root / "quarantine").iterdir()
    assert caught.value.code == "E-OBJECT-DAMAGED"
    assert caught.value.hint == f"its bytes were moved to cache/quarantine/{kept.name}; run doit again to build it anew"
