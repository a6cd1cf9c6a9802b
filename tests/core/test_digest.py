"""What a digest covers: every byte and every name, once, in one order; and what has none."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from ingot.core import digest
from ingot.core.digest import FileRecord
from ingot.errors import RefusedInput

DATA = os.urandom(3 * (1 << 20) + 17)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "artifact"
    (made / "b").mkdir(parents=True)
    for name in ("b/c", "b.c", "a", "é", "Z"):
        (made / name).write_bytes(name.encode())
    return made


def test_both_hashes_are_of_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    sha, fast = hashlib.sha256(DATA).hexdigest(), xxhash.xxh3_128_hexdigest(DATA)
    assert digest.hash_file(path) == (len(DATA), sha, fast)
    assert digest.fast_hash_file(path) == fast
    assert digest.hash_fd(os.open(path, os.O_RDONLY)) == (len(DATA), sha, fast)
    path.write_bytes(b"")
    assert digest.hash_file(path) == (0, hashlib.sha256().hexdigest(), xxhash.xxh3_128_hexdigest(b""))


@pytest.mark.parametrize("hash_of", [digest.hash_file, digest.fast_hash_file])
def test_a_link_has_no_hash_and_no_program_inherits_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_of: Callable[[Path], Any]
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
        hash_of(tmp_path / "link")
    assert caught.value.errno == errno.ELOOP
    flags: list[int] = []
    opened = os.open

    def noted(path: Path, how: int, *rest: Any) -> int:
        flags.append(how)
        return opened(path, how, *rest)

    monkeypatch.setattr(os, "open", noted)
    hash_of(tmp_path / "file")
    assert flags == [os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC]


def test_files_are_listed_by_the_bytes_of_their_paths(folder: Path) -> None:
    assert list(digest.walk_files(folder)) == ["Z", "a", "b.c", "b/c", "é"]
    (folder / "b" / "empty").mkdir()
    assert list(digest.walk_files(folder)) == ["Z", "a", "b.c", "b/c", "é"]
    assert list(digest.walk_files(folder, empty_folders=True)) == ["Z", "a", "b.c", "b/c", "b/empty/", "é"]


@pytest.mark.parametrize("name", ["back\\slash", "line\nfeed", "line\rfeed", "-dash", os.fsdecode(b"not\xffutf8")])
def test_a_name_that_cannot_be_printed_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(RefusedInput) as caught:
        list(digest.walk_files(folder))
    assert caught.value.code == "E-NAME"
    for odd in ("", "nul\0"):
        with pytest.raises(RefusedInput):
            digest.check_name(odd)


def test_as_many_files_as_are_allowed_and_one_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "MAX_FILES", 5)
    assert len(list(digest.walk_files(folder))) == 5
    (folder / "more").write_bytes(b"")
    with pytest.raises(RefusedInput) as caught:
        list(digest.walk_files(folder))
    assert caught.value.code == "E-LIMIT"


def test_as_many_levels_as_are_allowed_and_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "MAX_DEPTH", 3)
    deep = tmp_path / "one" / "two" / "three"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"")
    assert list(digest.walk_files(tmp_path)) == ["one/two/three/file"]
    (deep / "four").mkdir()
    with pytest.raises(RefusedInput) as caught:
        list(digest.walk_files(tmp_path))
    assert caught.value.code == "E-LIMIT"


@pytest.mark.parametrize("odd", ["link", "pipe"])
def test_what_is_neither_file_nor_folder_is_refused(folder: Path, odd: str) -> None:
    (folder / "odd").symlink_to("a") if odd == "link" else os.mkfifo(folder / "odd")
    with pytest.raises(RefusedInput) as caught:
        list(digest.walk_files(folder))
    assert caught.value.code == "E-OUTPUT-FILE"


def test_what_was_hashed_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = digest.record_files(folder)
    assert [record.path for record in records] == ["Z", "a", "b.c", "b/c", "é"]
    read: list[str] = []
    hash_file = digest.hash_file

    def noted(path: Path) -> tuple[int, str, str]:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(digest, "hash_file", noted)
    wrong_size = FileRecord("a", 7, "0" * 64, "0" * 32)
    of_another = FileRecord("other", 1, "0" * 64, "0" * 32)
    assert digest.record_files(folder, [records[0], wrong_size, of_another]) == records
    assert sorted(read) == ["a", "b.c", "c", "é"]


def test_a_digest_is_of_the_list_and_not_of_its_order(folder: Path) -> None:
    records = digest.record_files(folder)
    text = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("Z", "a", "b.c", "b/c", "é"))
    assert digest.tree_preimage((record.path, record.sha256) for record in reversed(records)) == text.encode()
    assert digest.tree_digest(records[::-1]) == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(RefusedInput):
        digest.tree_preimage([("-x", "0" * 64)])


@pytest.mark.parametrize(
    ("value", "found"),
    [("a" * 64, True), ("A" * 64, False), ("a" * 63, False), ("a" * 65, False), ("a" * 63 + "\n", False), (7, False)],
)
def test_what_is_a_digest(value: object, *, found: bool) -> None:
    assert digest.is_digest(value) is found


@pytest.mark.parametrize(
    "text", [b'{"a": 1, "a": 2}', b"NaN", b"[Infinity]", b'"\xff"', b'"a"'.decode().encode("utf-16")]
)
def test_json_that_two_readers_would_read_differently_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever json says
        digest.read_json(text)


def test_json_is_read_and_written_in_one_form() -> None:
    value = {"b": [1, 2.5, None, True], "a": "é"}
    assert digest.canonical_json(value) == '{"a":"é","b":[1,2.5,null,true]}'.encode()
    assert digest.read_json(digest.canonical_json(value)) == value
    assert digest.read_json(b"[12]", parse_int=lambda digits: f"<{digits}>") == ["<12>"]  # type: ignore[arg-type,return-value]
    for odd in (float("nan"), 2**53, "\ud800"):
        with pytest.raises(RefusedInput) as caught:
            digest.canonical_json(odd)
        assert caught.value.code == "E-JSON"
