"""The disk module: what is written is whole, failures are named, nothing is retried."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot.core import disk
from ingot.errors import DiskFailed


def fail(code: int) -> Callable[..., int]:
    def raising(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return raising


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"one", b"", b"three" * 1000):
        disk.write_file_atomic(path, data, 0o600)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_durable_says_whether_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.path.isdir(f"/dev/fd/{descriptor}")))
    disk.write_file_atomic(tmp_path / "a", b"x", durable=durable)
    assert synced == ([False, True] if durable else [])


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a"
    disk.write_file_atomic(path, b"old")
    monkeypatch.setattr(os, call, fail(errno.EIO))
    with pytest.raises(DiskFailed) as caught:
        disk.write_file_atomic(path, b"new")
    assert caught.value.code == "E-IO"
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "E-SPACE"),
        (errno.EDQUOT, "E-SPACE"),
        (errno.EMFILE, "E-FILES"),
        (errno.ENFILE, "E-FILES"),
        (errno.EACCES, "E-ACCESS"),
        (errno.EROFS, "E-ACCESS"),
        (errno.EIO, "E-IO"),
        (errno.ELOOP, "E-LINK"),
    ],
)
def test_a_failure_has_a_code_and_names_the_path(number: int, code: str) -> None:
    error = disk.failure(OSError(number, os.strerror(number)), Path("some/place"))
    assert (error.code, error.exit_code) == (code, 7)
    assert "some/place" in error.what
    assert disk.failure(OSError(number, "x", "other/place"), Path("some/place")).what.endswith("other/place")


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "lost")

    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", failing)
    for sync in (disk.fsync_file, disk.fsync_dir):
        with pytest.raises(DiskFailed):
            sync(tmp_path / "a" if sync is disk.fsync_file else tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize(("answer", "falls_back"), [(None, False), (errno.ENOTSUP, True), (errno.ENOTTY, True)])
def test_macos_flushes_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | None, falls_back: bool
) -> None:
    calls: list[str] = []

    def full(_descriptor: int, command: int) -> None:
        calls.append(f"fcntl {command}")
        if answer is not None:
            raise OSError(answer, "no")

    monkeypatch.setattr(disk, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: calls.append("fsync"))
    disk.fsync_dir(tmp_path)
    assert calls == ["fcntl 51", *(["fsync"] if falls_back else [])]


def test_a_lost_write_on_macos_is_not_hidden_by_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", fail(errno.EIO))
    with pytest.raises(DiskFailed):
        disk.fsync_dir(tmp_path)


def test_each_new_folder_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync_dir", synced.append)
    disk.make_dirs_durable(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced == [tmp_path.parent, tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    disk.make_dirs_durable(tmp_path / "a" / "b")
    assert len(synced) == 4


def test_a_folder_that_was_there_is_made_durable_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker may have been killed before the sync."""
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync_dir", synced.append)
    (tmp_path / "a").mkdir()
    disk.make_dirs_durable(tmp_path / "a")
    disk.make_dirs_durable(tmp_path / "a")
    assert synced == [tmp_path]
    (tmp_path / "a").rmdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "a").mkdir()
    disk.make_dirs_durable(tmp_path / "a")
    assert synced == [tmp_path, tmp_path]


@pytest.mark.parametrize(("code", "found"), [("E-ACCESS", True), ("E-IO", True), ("E-ACCESS", False)])
def test_a_folder_above_ours_may_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, found: bool
) -> None:
    (tmp_path / "a").mkdir()

    def refuse(path: Path) -> None:
        if path == (tmp_path if found else tmp_path / "a"):
            raise DiskFailed(code, "no")

    monkeypatch.setattr(disk, "fsync_dir", refuse)
    if code == "E-ACCESS" and found:
        disk.make_dirs_durable(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
    else:
        with pytest.raises(DiskFailed):
            disk.make_dirs_durable(tmp_path / "a" / "b")


def test_folders_that_may_be_lost_are_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    disk.make_dirs(tmp_path / "a" / "b")
    disk.make_dirs(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(DiskFailed, match="/file"):
        disk.make_dirs(tmp_path / "file" / "b")


def test_a_folder_made_by_another_process_meanwhile_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.mkdir

    def both(self: Path, mode: int = 0o777, *, exist_ok: bool) -> None:
        original(self, mode)
        original(self, mode, exist_ok=exist_ok)

    monkeypatch.setattr(Path, "mkdir", both)
    disk.make_dirs_durable(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DiskFailed, match="/a"):
        disk.make_dirs_durable(tmp_path / "a" / "b")


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: original(descriptor, bytes(data[:3])))
    disk.append_durable(tmp_path / "a", b"0123456789", 0)
    disk.append_durable(tmp_path / "a", b"abc", 10)
    assert (tmp_path / "a").read_bytes() == b"0123456789abc"


def test_append_wants_the_size_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with pytest.raises(DiskFailed) as caught:
        disk.append_durable(path, b"x", 4)
    assert caught.value.code == "E-CHANGED"
    assert path.read_bytes() == b"12345"
    with pytest.raises(DiskFailed):
        disk.append_durable(tmp_path / "absent", b"x", 4)


def test_append_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskFailed):
        disk.append_durable(tmp_path / "link", b"x", 0)
    assert not (tmp_path / "elsewhere").exists()


def test_truncate_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    disk.truncate(path, 2)
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync_dir", synced.append)
    disk.rename_durable(path, tmp_path / "sub" / "b")
    assert (tmp_path / "sub" / "b").read_bytes() == b"12"
    assert synced == [tmp_path / "sub"]


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    for goal in ("one", "two"):
        disk.replace_link(link, goal)
        assert os.readlink(link) == goal
    assert names(tmp_path) == ["latest"]
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DiskFailed):
        disk.replace_link(folder, "one")
    assert names(tmp_path) == ["folder", "latest"]


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    for name in (".a.tmp-00112233", ".b.tmp-00112233", "a"):
        (tmp_path / name).write_bytes(b"")
    assert disk.sweep_aside(tmp_path / "a") == 1
    assert names(tmp_path) == [".b.tmp-00112233", "a"]
    assert disk.sweep_asides(tmp_path) == 1
    assert names(tmp_path) == ["a"]
    assert disk.sweep_asides(tmp_path / "absent") == 0


def test_a_new_name_and_what_is_appended_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.path.realpath(f"/dev/fd/{descriptor}")))
    path = tmp_path / "a"
    disk.append_durable(path, b"123", 0)
    assert synced == [str(path), str(tmp_path)]
    disk.append_durable(path, b"456", 3)
    assert synced[2:] == [str(path)]
    disk.truncate(path, 4)
    assert path.read_bytes() == b"1234"


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path / "folder", tmp_path / "no" / "file"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(DiskFailed) as caught:
            disk.write_file_atomic(path, b"x")
        assert str(path) in caught.value.what
        assert ".tmp-" not in str(caught.value)
