"""The registry in ordinary life: append, read again, clones, branches, backups, many processes."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingot.core import log_places
from ingot.core.digest import canonical_json
from ingot.core.log import encode_line
from ingot.core.merkle import leaf_hash, root_of
from ingot.core.note import Checkpoint, Note, VerifierKey
from ingot.core.registry import Head, Ref, default_keys_dir, default_pins_dir
from ingot.core.statement import MAX_LINE, build_statement, receipt_of
from ingot.errors import Busy, DiskFailed, RefusedInput, RegistryDamaged, UsageError
from registrykit import DIGEST, Project, append_many, codes, git, numbers, project, receipt, selected

ATTRIBUTES = "ingot.lock -text merge=union\nregistry/** -text\n"


def test_opening_touches_nothing_and_loads_no_cryptography(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ingot.core.registry import Registry\n"
        "t = Path(sys.argv[1])\n"
        "r = Registry(t / 'r', lock_file=t / 'l', quarantine=t / 'q', keys=t / 'k', pins=t / 'p')\n"
        "assert r.heads() == {} and list(r.entries()) == []\n"
        "assert not {'cryptography', 'filelock', 'torch', 'numpy'} & set(sys.modules)\n"
        "assert not list(t.iterdir())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    at = project(tmp_path)
    refs = at.registry().append([build_statement(receipt()), selected(1)])
    origin = refs[0].origin
    assert refs == [Ref(origin, 1), Ref(origin, 2)]
    assert re.fullmatch(r"ingot\.local/[0-9a-f]{12}", origin)
    entries = list(at.registry().entries())
    assert [(entry.ref, entry.type) for entry in sorted(entries, key=lambda entry: entry.index)] == [
        (Ref(origin, 0), "origin"),
        (Ref(origin, 1), "build"),
        (Ref(origin, 2), "selected"),
    ]
    build = next(entry for entry in entries if entry.type == "build")
    assert receipt_of(build.statement) == receipt()
    assert at.registry().append([selected(2)]) == [Ref(origin, 3)]
    assert at.registry().append([]) == []
    assert numbers(at.registry()) == [1, 2]
    assert at.registry().check() == []


def test_the_files_are_in_the_published_formats(tmp_path: Path) -> None:
    """A stranger's check: from the three files to the signature, with no code of the registry."""
    at = project(tmp_path)
    at.registry().append([selected(1), selected(2)])
    lines = at.log().read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [canonical_json(json.loads(line)) for line in lines] == lines
    note = Note.parse(at.checkpoint().read_bytes())
    note.verify(VerifierKey.parse((at.folder() / "log.vkey").read_text().strip()))
    checkpoint = Checkpoint.parse(note.text)
    assert checkpoint.origin == f"ingot.local/{at.folder().name}"
    assert (checkpoint.size, checkpoint.root) == (3, root_of([leaf_hash(line) for line in lines]))
    assert at.registry().heads() == {checkpoint.origin: Head(3, checkpoint.root.hex())}


def test_the_lock_file_has_one_origin_a_line(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.registry().append([selected(1)])
    lock = json.loads(at.lock_file.read_text())
    (head,) = at.registry().heads().items()
    origin, (size, root) = head[0], (head[1].size, head[1].root)
    vkey = (at.folder() / "log.vkey").read_text().strip()
    pinned = {"size": size, "root": base64.b64encode(bytes.fromhex(root)).decode(), "vkey": vkey}
    assert lock == {"format": 1, "checkpoints": {origin: pinned, "": None}}
    assert len(at.lock_file.read_text().splitlines()) == 3


def test_keys_are_private_and_outside_the_project(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.registry().append([selected(1)])
    (key,) = (at.home / "config" / "keys").iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    seed = key.read_text().strip().split("+", 4)[4]  # base64 has plus signs of its own
    assert not any(seed in path.read_text() for path in at.tree.rglob("*") if path.is_file())
    key.chmod(0o640)
    with pytest.raises(UsageError, match="others can read"):
        at.registry().append([selected(2)])


def test_a_key_folder_inside_the_project_is_refused(tmp_path: Path) -> None:
    at = Project(tmp_path, tmp_path)
    with pytest.raises(UsageError) as caught:
        at.registry().append([selected(1)])
    assert caught.value.code == "E-KEY-PLACE"
    assert not (tmp_path / "config").exists()


def test_the_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_keys_dir() == tmp_path / "c" / "ingot" / "keys"
    assert default_pins_dir() == tmp_path / ".local" / "state" / "ingot" / "pins"


@pytest.mark.fault("T9", "an entry is larger than a line may be: refused before anything is written")
def test_an_entry_that_is_too_long_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    at = project(tmp_path)
    for bad, code in (({"x": "y" * 70_000}, "E-LEAF-SIZE"), ({"x": float("nan")}, "E-JSON")):
        with pytest.raises(RefusedInput) as caught:
            at.registry().append([selected(1), bad])
        assert caught.value.code == code
    assert not at.root.exists()
    assert not list(at.home.iterdir())


def test_big_numbers_stay_canonical(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.registry().append([build_statement(receipt(metrics={"a": {"value": 1e17}, "b": {"value": 1e300}}))])
    assert at.registry().check() == []


def test_evidence_is_kept_beside_the_log(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()
    files = [{"path": f"{n:05}", "size": n, "sha256": "55" * 32, "xxh3_128": "66" * 16} for n in range(1000)]
    made = receipt(files=files)
    registry.append([build_statement(made, registry.store_evidence)])
    assert registry.store_evidence(canonical_json(files)) == registry.store_evidence(canonical_json(files))
    reader = at.registry()
    build = next(entry for entry in reader.entries() if entry.type == "build")
    assert receipt_of(build.statement, reader.read_evidence) == made
    assert reader.check() == []
    with pytest.raises(RegistryDamaged):
        reader.read_evidence(DIGEST)
    with pytest.raises(RegistryDamaged):
        reader.read_evidence("../../../etc/passwd")


def test_entries_since_an_index(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()
    for number in range(1, 6):
        registry.append([selected(number)])
    (origin,) = registry.heads()
    for reader in (registry, at.registry()):
        size = registry.heads()[origin].size
        assert [entry.index for entry in reader.entries(origin)] == list(range(size))
        assert [entry.index for entry in reader.entries(origin, since=size - 2)] == [size - 2, size - 1]
        assert list(reader.entries(since=size)) == []
        registry.append([selected(size)])
        assert [entry.index for entry in reader.entries(origin, since=size)] == [size]
    assert list(registry.entries("ingot.local/000000000000")) == []


def test_logs_are_merged_by_time_and_never_reordered(tmp_path: Path) -> None:
    one, two = project(tmp_path, "one", "ann"), project(tmp_path, "two", "bob")
    times = {1: "2026-01-05", 2: "2026-01-01", 3: "2026-01-09"}  # the clock went back after the first
    for number, time in times.items():
        one.registry().append([selected(number, time)])
    for number, time in {11: "2026-01-02", 12: "2026-01-06"}.items():
        two.registry().append([selected(number, time)])
    shutil.copytree(two.root, one.root, dirs_exist_ok=True)
    found = numbers(one.registry())
    assert [n for n in found if n < 10] == [1, 2, 3]
    assert [n for n in found if n > 10] == [11, 12]


def test_a_long_series_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = project(tmp_path).registry()
    registry.append([selected(0)])

    def never(*_arguments: object) -> None:
        raise AssertionError("an append read the log again")

    monkeypatch.setattr("ingot.core.log.Log.scan", never)
    for number in range(20):
        registry.append([selected(number)])


# --- clones, branches, backups ---------------------------------------------------------------------------------


def committed(tmp_path: Path, user: str = "ann") -> Project:
    at = project(tmp_path, "origin", user)
    git(at.tree, "init", "-q", "-b", "main")
    (at.tree / ".gitattributes").write_text(ATTRIBUTES)
    (at.tree / ".gitignore").write_text("/cache/\n")
    commit(at)
    return at


def commit(at: Project) -> None:
    git(at.tree, "add", "-A")
    git(at.tree, "commit", "-q", "-m", "state")


def clone(at: Project, name: str, user: str) -> Project:
    git(at.tree.parent, "clone", "-q", str(at.tree), name)
    return project(at.tree.parent, name, user)


@pytest.mark.fault("H4", "two clones with two keys are merged: no entry is lost, no conflict")
@pytest.mark.parametrize("started", [True, False], ids=["one-log-before", "no-log-before"])
def test_two_clones_with_two_keys_merge_clean(tmp_path: Path, started: bool) -> None:
    ann = committed(tmp_path)
    if started:
        ann.registry().append([selected(1)])
        commit(ann)
    bob = clone(ann, "bob", "bob")
    bob.registry().append([selected(2)])
    commit(bob)
    ann.registry().append([selected(3)])
    commit(ann)
    git(ann.tree, "pull", "-q", "--no-rebase", "--no-edit", str(bob.tree), "main")
    assert git(ann.tree, "status", "--porcelain") == ""
    assert sorted(numbers(ann.registry())) == ([1, 2, 3] if started else [2, 3])
    assert len(ann.registry().heads()) == 2
    assert ann.registry().check() == []
    ann.registry().append([selected(4)])
    commit(ann)
    git(bob.tree, "pull", "-q", "--no-rebase", "--no-edit", str(ann.tree), "main")
    bob.registry().append([selected(5)])
    assert len(bob.registry().heads()) == 2
    assert bob.registry().check() == []
    assert bob.registry().notices == []


def test_a_new_origin_names_the_logs_that_it_saw(tmp_path: Path) -> None:
    ann = committed(tmp_path)
    ann.registry().append([selected(1)])
    ((origin, head),) = ann.registry().heads().items()
    commit(ann)
    bob = clone(ann, "bob", "bob")
    (ref,) = bob.registry().append([selected(2)])
    first = next(iter(bob.registry().entries(ref.origin)))
    assert (first.type, first.index) == ("origin", 0)
    assert first.statement["predicate"]["seen"] == [{"origin": origin, "size": head.size, "root": head.root}]
    lock = json.loads(bob.lock_file.read_text())["checkpoints"]
    assert set(lock) == {origin, ref.origin, ""}


def test_a_second_clone_that_lags_begins_another_log(tmp_path: Path) -> None:
    ann = committed(tmp_path)
    ann.registry().append([selected(1)])
    commit(ann)
    second = clone(ann, "second", "ann")
    (first,) = ann.registry().append([selected(2)])
    registry = second.registry()
    (ref,) = registry.append([selected(3)])
    assert ref.origin != first.origin
    (notice,) = registry.notices
    assert first.origin in notice
    assert ref.origin in notice
    assert codes(second.registry()) == {"log_behind"}
    # The new log is at its newest, so it goes on being used, without another word.
    again = second.registry()
    assert again.append([selected(4)])[0].origin == ref.origin
    assert again.notices == []
    commit(ann)
    commit(second)
    git(ann.tree, "pull", "-q", "--no-rebase", "--no-edit", str(second.tree), "main")
    assert ann.registry().check() == []
    assert sorted(numbers(ann.registry())) == [1, 2, 3, 4]


def test_a_clone_of_the_same_user_that_is_up_to_date_shares_the_log(tmp_path: Path) -> None:
    ann = committed(tmp_path)
    (first,) = ann.registry().append([selected(1)])
    commit(ann)
    second = clone(ann, "second", "ann")
    (ref,) = second.registry().append([selected(2)])
    assert (ref.origin, ref.index) == (first.origin, 2)
    # Now the first one lags.
    assert ann.registry().append([selected(3)])[0].origin != first.origin


def test_two_long_processes_of_one_user_in_two_clones_never_fork(tmp_path: Path) -> None:
    ann = committed(tmp_path)
    first = ann.registry()
    (ref,) = first.append([selected(1)])
    commit(ann)
    second = clone(ann, "second", "ann").registry()
    second.append([selected(2)])
    # What ``first`` has in memory and on its disk is unchanged; only the pin tells that it lags.
    (aside,) = first.append([selected(3)])
    assert aside.origin != ref.origin
    assert second.append([selected(4)])[0] == Ref(ref.origin, 3)


def test_a_clone_waits_for_the_other_clone_that_writes_to_the_same_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = committed(tmp_path)
    ann.registry().append([selected(1)])
    commit(ann)
    second = clone(ann, "second", "ann")
    monkeypatch.setattr(log_places, "WAIT_S", 0.05)
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with log_places.held(ann.home / "state" / "pins" / f"{ann.folder().name}.lock"):
            ready.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(Busy):
            second.registry().append([selected(2)])
    finally:
        done.set()
        holder.join()


def test_what_changes_on_disk_between_two_appends_of_one_process_is_seen(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()
    registry.append([selected(1)])
    with at.log().open("ab") as file:
        file.write(b"torn")
    registry.append([selected(2)])
    assert [path.read_bytes() for path in at.quarantine.iterdir()] == [b"torn"]
    assert numbers(at.registry()) == [1, 2]
    good = at.checkpoint().read_bytes()
    at.checkpoint().write_bytes(good.replace(b"\n3\n", b"\n2\n"))
    with pytest.raises(RegistryDamaged):
        registry.append([selected(3)])
    at.checkpoint().write_bytes(good)
    registry.append([selected(3)])
    assert numbers(at.registry()) == [1, 2, 3]


@pytest.mark.fault("H5", "branches are switched and switched back between appends: no log forks")
def test_switching_branches_back_and_forth_never_forks(tmp_path: Path) -> None:
    ann = committed(tmp_path)
    registry = ann.registry()
    (first,) = registry.append([selected(1)])
    commit(ann)
    git(ann.tree, "branch", "side")
    registry.append([selected(2)])
    commit(ann)
    git(ann.tree, "checkout", "-q", "side")
    (aside,) = registry.append([selected(3)])  # the same process goes on after the switch
    assert aside.origin != first.origin
    commit(ann)
    git(ann.tree, "checkout", "-q", "main")
    assert ann.registry().append([selected(4)])[0].origin == first.origin
    commit(ann)
    git(ann.tree, "merge", "-q", "--no-edit", "side")
    assert ann.registry().check() == []
    assert sorted(numbers(ann.registry())) == [1, 2, 3, 4]


@pytest.mark.fault("H1", "an old backup of the registry is put back: nothing is appended to the older log")
def test_a_restored_backup_is_not_appended_to(tmp_path: Path) -> None:
    at = project(tmp_path)
    (first,) = at.registry().append([selected(1)])
    shutil.copytree(at.root, tmp_path / "backup")
    lock = at.lock_file.read_bytes()
    at.registry().append([selected(2)])
    shutil.rmtree(at.root)
    shutil.copytree(tmp_path / "backup", at.root)
    at.lock_file.write_bytes(lock)
    before = (at.root / first.origin.split("/")[1] / "log.jsonl").read_bytes()
    registry = at.registry()
    assert registry.append([selected(3)])[0].origin != first.origin
    assert registry.notices
    assert (at.root / first.origin.split("/")[1] / "log.jsonl").read_bytes() == before


def test_a_log_that_git_pinned_longer_is_not_appended_to(tmp_path: Path) -> None:
    """The state folder may be lost; then ``ingot.lock`` alone stops the fork."""
    at = project(tmp_path)
    (first,) = at.registry().append([selected(1)])
    shutil.copytree(at.root, tmp_path / "backup")
    at.registry().append([selected(2)])
    shutil.rmtree(at.root)
    shutil.copytree(tmp_path / "backup", at.root)
    shutil.rmtree(at.home / "state")
    assert at.registry().append([selected(3)])[0].origin != first.origin
    assert "log_truncated" in codes(at.registry())


# --- several at once --------------------------------------------------------------------------------------------


def test_eight_processes_lose_nothing(tmp_path: Path) -> None:
    at = project(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(at, 100 * number, 20)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = numbers(at.registry())
    assert sorted(found) == sorted(100 * worker + number for worker in range(8) for number in range(20))
    assert len(at.registry().heads()) == 1
    for worker_number in range(8):
        mine = [number for number in found if number // 100 == worker_number]
        assert mine == sorted(mine)
    assert at.registry().check() == []


def test_threads_of_one_process_lose_nothing(tmp_path: Path) -> None:
    at = project(tmp_path)
    registry = at.registry()

    def work(first: int) -> None:
        for number in range(first, first + 10):
            registry.append([selected(number)])

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers(at.registry())) == 40
    assert at.registry().check() == []


def test_a_lock_held_too_long_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = project(tmp_path)
    at.registry().append([selected(1)])
    monkeypatch.setattr(log_places, "WAIT_S", 0.05)
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with log_places.held(at.tree / "cache" / "registry.lock"):
            ready.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(Busy, match="another process"):
            at.registry().append([selected(2)])
    finally:
        done.set()
        holder.join()
    assert numbers(at.registry()) == [1]


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    at = project(tmp_path)
    (at.tree / "cache").mkdir()
    os.symlink(tmp_path / "victim", at.tree / "cache" / "registry.lock")
    with pytest.raises(DiskFailed, match=r"registry\.lock"):
        at.registry().append([selected(1)])
    assert not (tmp_path / "victim").exists()


def test_verifying_our_own_logs_finds_damage_before_an_append_would(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.registry().verify_own()
    at.registry().append([selected(1), selected(2)])
    at.registry().verify_own()
    data = at.log().read_bytes()
    at.log().write_bytes(data.replace(b'"number":1', b'"number":7'))
    with pytest.raises(RegistryDamaged):
        at.registry().verify_own()
    assert at.log().read_bytes() == data.replace(b'"number":1', b'"number":7'), "nothing is mended unasked"
    at.log().write_bytes(data)
    at.registry().verify_own()


def test_a_log_that_is_pinned_and_gone_is_told_of_by_verifying(tmp_path: Path) -> None:
    at = project(tmp_path)
    at.registry().append([selected(1)])
    shutil.rmtree(at.folder())
    registry = at.registry()
    registry.verify_own()
    assert [notice for notice in registry.notices if "is gone" in notice]


def test_entries_of_two_logs_are_merged_by_their_times(tmp_path: Path) -> None:
    one, other = project(tmp_path, user="one"), project(tmp_path, user="other")
    one.registry().append([selected(1, "2090-01-01T00:00:00.000000Z")])
    other.registry().append([selected(2, "2090-01-02T00:00:00.000000Z")])
    one.registry().append([selected(3, "2090-01-03T00:00:00.000000Z")])
    assert len(list(one.root.iterdir())) == 2
    assert numbers(one.registry()) == [1, 2, 3]


def test_a_line_may_have_just_as_many_bytes_as_are_allowed() -> None:
    text = "x" * (MAX_LINE - len(b'{"a":""}'))
    assert len(encode_line({"a": text})) == MAX_LINE
    with pytest.raises(RefusedInput, match="E-LEAF-SIZE"):
        encode_line({"a": text + "x"})
