"""The store: what is published is whole, what is damaged is found, and staging is dropped."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ingot.core import disk
from ingot.core.digest import FileRecord, hash_file, record_files
from ingot.core.store import Store
from ingot.errors import DiskFailed, RefusedInput, StageFailed, StoreDamaged
from storekit import FILES, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_the_digest_is_what_the_documented_command_prints(store: Store) -> None:
    digest, _files = publish(store, FILES)
    command = r"find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=store.object_path(digest), capture_output=True, check=True)
    assert printed.stdout.split()[0].decode() == digest


def test_a_published_object_is_whole_and_read_only(store: Store) -> None:
    digest, files = publish(store, FILES)
    assert store.presence(digest, files) == ("present", ())
    for folder, _names, names in os.walk(store.object_path(digest)):
        assert os.stat(folder).st_mode & 0o222 == 0
        assert all(os.stat(Path(folder) / name).st_mode & 0o222 == 0 for name in names)
    assert list((store.root / "staging").iterdir()) == []


def test_a_file_whose_stat_is_known_is_read_again_only_when_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, files = publish(store, FILES)
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return str(next(it["xxh3_128"] for it in files if it["path"].endswith(path.name)))

    monkeypatch.setattr("ingot.core.store.fast_hash_file", counting)
    assert store.presence(digest, files) == ("present", ())
    assert read == []
    assert store.presence(digest, files, reread=True) == ("present", ())
    assert len(read) == len(files)
    store.doubt(digest, "a.txt")
    store.presence(digest, files)
    assert read[len(files) :] == ["a.txt"]


def test_publishing_the_same_bytes_twice_gives_one_object(store: Store) -> None:
    first, _files = publish(store, FILES)
    second, _files = publish(store, dict(reversed(FILES.items())))
    assert first == second
    assert list(store.objects()) == [first]


def _open_up(path: Path) -> None:
    for folder in (path, *path.parents):
        if folder.name == "objects":
            return
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize(
    ("what", "detail"),
    [
        ("flip", "a.txt has other content"),
        ("truncate", "a.txt has 4 bytes, not 5"),
        ("extend", "a.txt has 6 bytes, not 5"),
        ("delete", "a.txt is missing"),
        ("extra", "new is not in the registry's list"),
    ],
)
def test_every_change_of_an_object_is_found(store: Store, what: str, detail: str, *, remembered: bool) -> None:
    digest, files = publish(store, FILES)
    if not remembered:
        store.stats.drop(f"objects/{digest}/a.txt")
    path = store.object_path(digest) / "a.txt"
    _open_up(path)
    changes = {"flip": b"alphb", "truncate": b"alph", "extend": b"alpha!"}
    if what in changes:
        path.write_bytes(changes[what])
    elif what == "delete":
        path.unlink()
    else:
        path.with_name("new").write_bytes(b"")
    presence, damage = store.presence(digest, files)
    assert presence == "damaged"
    assert [f"{item.path} {item.detail}" for item in damage] == [detail]


def test_a_damaged_object_is_quarantined_and_never_handed_out(store: Store) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest) / "a.txt"
    _open_up(path)
    path.write_bytes(b"ALPHA")
    with pytest.raises(StoreDamaged, match="is damaged") as caught:
        store.require(digest, files)
    assert caught.value.facts == ("a.txt has other content",)
    (kept,) = (store.root / "quarantine").iterdir()
    assert (kept / "a.txt").read_bytes() == b"ALPHA"
    assert store.presence(digest, files)[0] == "missing"


def test_a_damaged_object_makes_room_for_a_good_one(store: Store) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest) / "a.txt"
    _open_up(path)
    path.write_bytes(b"ALPHA")
    assert publish(store, FILES)[0] == digest
    assert store.presence(digest, files) == ("present", ())
    assert len(list((store.root / "quarantine").iterdir())) == 1


@pytest.mark.fault("M18", "names of files that nobody could print")
@pytest.mark.parametrize("name", ["back\\slash", "new\nline", "-dash", "carriage\rreturn"])
def test_names_that_the_digest_could_not_print_are_refused(store: Store, name: str) -> None:
    with pytest.raises(RefusedInput, match="cannot be part of an artifact"):
        publish(store, {name: b"x"})
    assert list(store.objects()) == []


@pytest.mark.fault("M18", "outputs that are no files: links, pipes, empty folders, hard links")
def test_odd_outputs_are_refused(store: Store) -> None:
    with store.staging() as staging:
        (staging.out / "link").symlink_to("/etc/passwd")
        with pytest.raises(RefusedInput, match="neither a file nor a folder"):
            store.publish(staging)
    with store.staging() as staging:
        (staging.out / "a").write_bytes(b"x")
        (staging.out / "b").hardlink_to(staging.out / "a")
        with pytest.raises(StageFailed, match="hard link"):
            store.publish(staging)
    with store.staging() as staging:
        (staging.out / "empty").mkdir()
        with pytest.raises(StageFailed, match="empty folder"):
            store.publish(staging)
    with store.staging() as staging, pytest.raises(StageFailed, match="wrote no file"):
        store.publish(staging)


@pytest.mark.fault("C8", "SIGKILL of the builder while a stage's program runs")
def test_staging_of_a_dead_process_is_swept_and_of_a_living_one_kept(store: Store) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from ingot.core.store import Store\n"
        "with Store(Path(sys.argv[1])).staging() as s:\n"
        "    (s.out / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(store.root)], check=False)
    assert len([path for path in (store.root / "staging").iterdir() if path.is_dir()]) == 1
    with store.staging() as alive:
        assert [path for path in (store.root / "staging").iterdir() if path.is_dir()] == [alive.root]
        assert Store(store.root).sweep_staging() == 0
        assert alive.out.is_dir()


def test_a_folder_whose_lock_a_power_cut_took_is_swept(store: Store) -> None:
    with store.staging() as alive:
        lost = store.root / "staging" / "0011223344556677"
        (lost / "out").mkdir(parents=True)
        (store.root / "staging" / "note.txt").touch()
        assert store.sweep_staging() == 1
        assert not lost.exists()
        assert alive.out.is_dir()
    assert [path.name for path in (store.root / "staging").iterdir()] == ["note.txt"]


def test_results_are_filed_once_per_entry(store: Store) -> None:
    receipt = {"origin": "o", "index": 1, "digest": "d", "timings": {"finished": "2026-01-02T00:00:00Z"}}
    older = {"origin": "p", "index": 0, "digest": "e", "timings": {"finished": "2026-01-01T00:00:00Z"}}
    store.add_result("k", receipt)
    store.add_result("k", older)
    store.add_result("k", receipt)
    assert [build["digest"] for build in store.read_result("k")] == ["e", "d"]
    assert store.read_result("unknown") == []


def test_the_latest_link_points_into_the_store(store: Store) -> None:
    digest, _files = publish(store, FILES)
    link = store.link_latest("spec", "t@a", digest)
    assert (link / "a.txt").read_bytes() == b"alpha"
    assert store.has_latest("spec", "t@a", digest)
    assert store.unlink_latest("spec", "t@a")
    assert not store.has_latest("spec", "t@a", digest)


def test_a_swept_lock_file_is_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds the new lock file before it is locked, and takes the build for a dead one."""
    real = fcntl.flock
    swept: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not swept:
            swept.append(0)
            swept[0] = store.sweep_staging()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.staging() as alive:
        assert swept == [1]
        assert store.sweep_staging() == 0
        assert alive.root.with_suffix(".lock").exists(), "the build that goes on has a lock that others see"
        assert alive.out.is_dir()
    assert list((store.root / "staging").iterdir()) == []


def test_a_lock_file_that_a_sweeper_holds_is_left_to_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    held: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not held:
            (path,) = (store.root / "staging").glob("*.lock")
            held.append(os.open(path, os.O_RDWR))
            real(held[0], operation)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.staging() as alive:
        assert not os.path.samestat(os.fstat(held[0]), os.fstat(alive.lock_fd)), "a lock file of its own"
    os.close(held[0])


def test_rubbish_that_cannot_be_removed_hides_no_reason_and_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(KeyError), store.staging():
            raise KeyError("the stage's own failure")
        with store.staging() as built:
            (built.out / "x").write_bytes(b"x")
            digest, _records = store.publish(built)
    assert store.object_path(digest).is_dir()
    assert store.sweep_staging() == 2
    assert list((store.root / "staging").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file", "gone"])
def test_an_output_folder_that_is_another_is_refused(store: Store, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_bytes(b"x")
    os.chmod(elsewhere / "mine", 0o640)
    with store.staging() as built:
        built.out.rmdir()
        if kind == "link":
            built.out.symlink_to(elsewhere)
        elif kind == "file":
            built.out.write_bytes(b"x")
        with pytest.raises(StageFailed, match="output folder"):
            store.publish(built)
    assert (elsewhere / "mine").stat().st_mode & 0o777 == 0o640
    assert list(store.objects()) == []


@pytest.mark.fault("B4", "something that is no file lies where an artifact is published: it makes room and is kept")
@pytest.mark.parametrize("replaced", ["link", "folder", "pipe", "object", "object link"])
def test_what_is_no_file_is_damage_and_makes_room(store: Store, tmp_path: Path, replaced: str) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest)
    _open_up(path)
    name = path / "a.txt"
    if replaced.startswith("object"):
        path.rename(tmp_path / "away")
        path.symlink_to(tmp_path / "away") if replaced == "object link" else path.write_bytes(b"alpha")
    else:
        name.unlink()
        if replaced == "link":
            name.symlink_to("/etc/passwd")
        elif replaced == "folder":
            name.mkdir()
        else:
            os.mkfifo(name)
    assert store.presence(digest, files)[0] == "damaged"
    assert publish(store, FILES)[0] == digest
    assert store.presence(digest, files) == ("present", ())


@pytest.mark.parametrize("where", ["walk_files", "fast_hash_file"])
def test_not_being_able_to_look_is_not_absence(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    digest, files = publish(store, FILES)
    store.stats.drop(f"objects/{digest}/a.txt")

    def refuse(path: Path, **_options: bool) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(f"ingot.core.store.{where}", refuse)
    with pytest.raises(DiskFailed) as caught:
        store.presence(digest, files)
    assert caught.value.code == "E-ACCESS"


def test_a_file_that_the_device_cannot_read_is_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, files = publish(store, FILES)
    store.stats.drop(f"objects/{digest}/a.txt")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("ingot.core.store.fast_hash_file", fail)
    assert store.presence(digest, files)[0] == "damaged"


def test_a_change_with_the_old_time_put_back_is_found(store: Store) -> None:
    digest, files = publish(store, FILES)
    path = store.object_path(digest) / "a.txt"
    before = os.lstat(path)
    _open_up(path)
    path.chmod(0o644)
    path.write_bytes(b"ALPHA")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o444)
    assert store.presence(digest, files)[1][0].detail == "has other content"


@pytest.mark.fault("B5", "a bit changes between the hash and the disk: nothing is published")
@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_changes_after_the_hash_is_never_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """As memory that fails does, or a program that the stage left running."""

    def hash_then_change(root: Path, hashed: Sequence[FileRecord]) -> object:
        records = record_files(root, hashed)
        os.chmod(root / "a.txt", 0o644)
        data = bytearray(b"alpha")
        data[place] ^= 1
        (root / "a.txt").write_bytes(data)
        return records

    with monkeypatch.context() as patch:
        patch.setattr("ingot.core.sealing.record_files", hash_then_change)
        with pytest.raises(DiskFailed, match="other content when it is read again") as caught:
            publish(store, FILES)
    assert caught.value.code == "E-CHANGED"
    assert list(store.objects()) == []
    publish(store, FILES)


def hashed_publish(store: Store, records: Sequence[FileRecord]) -> tuple[str, tuple[FileRecord, ...]]:
    with store.staging() as staging:
        (staging.out / "a.txt").write_bytes(b"alpha")
        (staging.out / "b.txt").write_bytes(b"beta")
        return store.publish(staging, records)


def test_what_was_hashed_while_it_was_written_is_not_hashed_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(b"alpha")
    known = record_files(tmp_path)[0]
    read: list[str] = []

    def watched(path: Path) -> tuple[int, str, str]:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr("ingot.core.digest.hash_file", watched)
    digest, records = hashed_publish(store, [known])
    assert read == ["b.txt"]
    assert digest == hashed_publish(store, [])[0]
    # A record of another file, or of another size, tells nothing.
    others = [replace(known, size=4), replace(known, path="c.txt")]
    assert hashed_publish(store, others) == (digest, records)


@pytest.mark.fault("B5", "a bit changes between the hash of the write path and the disk: nothing is published")
def test_a_file_that_is_not_what_was_hashed_is_never_published(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"alphA")
    with pytest.raises(DiskFailed) as caught:
        hashed_publish(store, record_files(tmp_path))
    assert caught.value.code == "E-CHANGED"
    assert list(store.objects()) == []


def test_what_the_reader_compares_itself_is_not_read(store: Store) -> None:
    """Its kind and size are looked at, whatever is known of its stat."""
    digest, files = publish(store, FILES)
    path = store.object_path(digest) / "a.txt"
    path.chmod(0o644)
    path.write_bytes(b"ALPHA")
    assert store.require(digest, files, later=lambda name: name == "a.txt") == store.object_path(digest)
    for wrong, detail in ((b"longer than before", "has 18 bytes, not 5"), (None, "is missing")):
        path.chmod(0o644)
        if wrong is None:
            path.parent.chmod(0o755)
            path.unlink()
        else:
            path.write_bytes(wrong)
        presence, damage = store.presence(digest, files, later=lambda name: name == "a.txt")
        assert (presence, [item.detail for item in damage]) == ("damaged", [detail])
    with pytest.raises(StoreDamaged):
        store.require(digest, files, later=lambda name: name == "a.txt")


def test_an_object_whose_writer_died_before_it_was_read_only_is_mended(store: Store) -> None:
    digest, _files = publish(store, FILES)
    os.chmod(store.object_path(digest), 0o755)
    publish(store, FILES)
    assert store.object_path(digest).stat().st_mode & 0o777 == 0o555


def test_a_good_object_is_not_quarantined_for_the_damage_of_its_forerunner(store: Store) -> None:
    digest, files = publish(store, FILES)
    assert store.quarantine(digest, files) is None
    assert store.presence(digest, files) == ("present", ())
    assert store.quarantine("0" * 64, files) is None


@pytest.mark.parametrize("call", ["fsync_file", "rename_durable"])
def test_a_disk_that_fills_while_publishing_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*paths: Path) -> None:
        raise disk.failure(OSError(errno.ENOSPC, "No space left on device"), paths[-1])

    with monkeypatch.context() as patch:
        patch.setattr(disk, call, full)
        with pytest.raises(DiskFailed) as caught:
            publish(store, FILES)
    assert caught.value.code == "E-SPACE"
    assert list(store.objects()) == []
    assert list((store.root / "staging").iterdir()) == []
    publish(store, FILES)


def test_files_of_a_file_manager_are_no_objects(store: Store) -> None:
    digest, _files = publish(store, FILES)
    (store.root / "objects" / ".DS_Store").write_bytes(b"x")
    assert list(store.objects()) == [digest]


def test_a_damaged_result_is_told_from_an_unknown_one(store: Store) -> None:
    (store.root / "results").mkdir(parents=True)
    (store.root / "results" / "k.json").write_bytes(b"")
    assert store.result("k") is None
    assert store.read_result("k") == []
    assert store.result("other") == []
