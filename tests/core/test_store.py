"""The store: what is published is whole, what is damaged is found, and staging is dropped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot.core.store import Store
from ingot.errors import RefusedInput, StageFailed, StoreDamaged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def publish(store: Store, files: dict[str, bytes]) -> tuple[str, list[dict[str, Any]]]:
    with store.staging() as staging:
        for name, data in files.items():
            path = staging.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        digest, records = store.publish(staging)
    return digest, [record.to_dict() for record in records]


FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)) * 64, "with space": b"", "uni-é": b"x"}


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


@pytest.mark.parametrize("name", ["back\\slash", "new\nline", "-dash", "carriage\rreturn"])
def test_names_that_the_digest_could_not_print_are_refused(store: Store, name: str) -> None:
    with pytest.raises(RefusedInput, match="cannot be part of an artifact"):
        publish(store, {name: b"x"})
    assert list(store.objects()) == []


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
