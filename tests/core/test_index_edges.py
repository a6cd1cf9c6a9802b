"""The index on a log of a few lines: what it reads, what it keeps for the next process, and what it does not trust."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ingot.core import disk
from ingot.core.index import Index
from ingot.core.registry import Entry, Registry
from ingot.core.seal import Seal
from ingot.core.statement import build_statement, decision_statement
from ingot.core.store import Store
from ingot.errors import RegistryDamaged
from registrykit import DIGEST, Project, project, receipt

KEY = "22" * 32
LATER, LATEST = "2031-01-01T00:00:00.000000Z", "2032-01-01T00:00:00.000000Z"


@dataclass
class Opened:
    """An index as a process has it, and what it had read of the logs."""

    index: Index
    registry: Registry
    read: list[tuple[str, int]] = field(default_factory=list)
    proved: list[str] = field(default_factory=list)
    reread: list[str] = field(default_factory=list)


def opened(at: Project, *, sync: bool = True) -> Opened:
    """As a new process opens it; the reads are noted."""
    registry = at.registry()
    store = Store(at.tree / "cache", Seal(at.home / "state" / "seal"))
    found = Opened(Index(registry, store), registry)
    entries, prove, reread = registry.entries, registry.prove, registry.reread

    def noted(origin: str, *, since: int = 0) -> Iterator[Entry]:
        found.read.append((origin, since))
        return entries(origin, since=since)

    def proving(origin: str) -> None:
        found.proved.append(origin)
        prove(origin)

    def rereading(origin: str) -> None:
        found.reread.append(origin)
        reread(origin)

    registry.entries, registry.prove, registry.reread = noted, proving, rereading  # type: ignore[method-assign,assignment]
    if sync:
        found.index.sync()
    return found


def build(target: str = "demo:a", digest: str = DIGEST, key: str = KEY, finished: str = LATER) -> dict[str, Any]:
    made = receipt(target=target, digest=digest, key=key)
    made["timings"]["finished"] = finished
    return build_statement(made)


def decided(kind: str, target: str = "demo:a", digest: str = DIGEST, time: str = LATER, **more: Any) -> dict[str, Any]:
    return decision_statement(kind, {"target": target, "digest": digest, "key": KEY, **more}, time=time)


GATE: dict[str, Any] = {"gate": "demo:a.bytes max 1", "limit": "<= 1", "reference": None, "value": 2}


@pytest.fixture
def at(tmp_path: Path) -> Project:
    """A log of two builds, a failed gate and a promotion; settled, so that its stat counts."""
    made = project(tmp_path)
    entries = [build(), build("demo:b", "44" * 32, "55" * 32), decided("gate-failed", **GATE), decided("promote")]
    made.registry().append(entries)
    settle(made)
    return made


def settle(at: Project) -> None:
    """Let time go by, as far as stats tell."""
    for log in at.root.glob("*/log.jsonl"):
        os.utime(log, ns=(10**18, 10**18))


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stat is so young that it may change again within its tick."""
    import time

    real = time.time_ns
    monkeypatch.setattr("ingot.core.index.clock.time_ns", lambda: real() + 10**9)


def origin_of(at: Project) -> str:
    return f"ingot.local/{at.folder().name}"


# --- what is kept for the next process -----------------------------------------------------------------------


def test_the_next_process_reads_nothing_of_what_it_finds(at: Project) -> None:
    first = opened(at)
    assert first.read == [(origin_of(at), 0)]
    assert first.proved == [origin_of(at)]
    first.index.save()
    second = opened(at)
    assert (second.read, second.proved, second.reread) == ([], [], [])
    for name in ("latest", "promoted"):
        assert getattr(second.index, name) == getattr(first.index, name) != type(getattr(first.index, name))()
    assert second.index.history.to_json() == first.index.history.to_json()
    assert second.index.state() == first.index.state()
    assert second.index.gate_known({"type": "gate-failed", "digest": DIGEST, **GATE})
    assert not second.index.gate_known({"type": "gate-warned", "digest": DIGEST, **GATE})
    assert [it["digest"] for it in second.index.builds(KEY)] == [DIGEST]
    assert second.index.promoted == {"demo:a"}


def test_an_index_is_kept_only_where_it_has_changed(at: Project) -> None:
    found = opened(at)
    path = at.tree / "cache" / "index.json"
    found.index.save()
    kept = path.stat().st_ino
    found.index.save()
    opened(at).index.save()
    assert path.stat().st_ino == kept
    at.registry().append([decided("selected")])
    found.index.sync()
    found.index.save()
    assert path.stat().st_ino != kept


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data | {"format": 4},
        lambda data: {name: value for name, value in data.items() if name != "gates"},
        lambda data: data | {"heads": {origin: [1] for origin in data["heads"]}},
        lambda data: data | {"latest": 3},
        lambda data: [data],
    ],
)
def test_an_index_of_another_form_is_read_from_the_logs(at: Project, change: Any) -> None:
    found = opened(at)
    found.index.save()
    seal, path = Seal(at.home / "state" / "seal"), at.tree / "cache" / "index.json"
    content = seal.unwrap(path.name, path.read_bytes())
    assert content is not None
    path.write_bytes(seal.wrap(path.name, json.dumps(change(json.loads(content))).encode()))
    again = opened(at)
    assert again.read == [(origin_of(at), 0)]
    assert again.index.latest == found.index.latest
    assert again.index.state() == found.index.state()


def test_no_results_are_as_good_as_no_index(at: Project) -> None:
    found = opened(at)
    found.index.save()
    shutil.rmtree(at.tree / "cache" / "results")
    again = opened(at)
    assert again.read == [(origin_of(at), 0)]
    assert [it["digest"] for it in again.index.builds(KEY)] == [DIGEST]


def test_a_project_without_logs_has_nothing_to_read(tmp_path: Path) -> None:
    found = opened(project(tmp_path))
    assert (found.read, found.index.latest, found.index.state()) == ([], {}, ())
    found.index.save()
    assert not (tmp_path / "project" / "cache" / "index.json").exists()


# --- what is read again --------------------------------------------------------------------------------------


def test_only_what_is_new_is_read(at: Project) -> None:
    found = opened(at)
    found.read.clear()
    at.registry().append([decided("selected", digest="66" * 32, time=LATEST)])
    found.index.sync()
    assert found.read == [(origin_of(at), 5)]
    assert found.index.latest["demo:a"]["digest"] == "66" * 32
    found.read.clear()
    found.index.sync()
    assert found.read == []


def test_the_next_process_reads_on_from_the_last_entry_that_was_read(at: Project) -> None:
    opened(at).index.save()
    at.registry().append([decided("selected", digest="66" * 32, time=LATEST)])
    settle(at)
    found = opened(at)
    # The last entry, to see whether this is the log that was read, and what follows.
    assert found.read == [(origin_of(at), 4), (origin_of(at), 5)]
    assert found.index.latest["demo:a"]["digest"] == "66" * 32


def test_lines_with_another_stat_are_read_again_once(at: Project) -> None:
    opened(at).index.save()
    os.utime(at.log(), ns=(10**18, 10**18 + 5))
    found = opened(at)
    assert (found.reread, found.read) == ([origin_of(at)], [])
    found.index.sync()
    assert found.reread == [origin_of(at)]
    found.index.save()
    assert opened(at).reread == []


def test_a_stat_that_may_change_within_its_tick_proves_nothing_later(
    at: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The later of the two times counts.
    now = os.stat(at.log()).st_ctime_ns + 10**9
    os.utime(at.log(), ns=(now, now))
    for age, again in ((99_999_999, [origin_of(at)]), (100_000_000, [])):
        monkeypatch.setattr("ingot.core.index.clock.time_ns", lambda age=age: now + age)
        shutil.rmtree(at.tree / "cache", ignore_errors=True)
        opened(at).index.save()
        assert opened(at).reread == again


def test_lines_that_were_changed_by_hand_decide_nothing(at: Project) -> None:
    opened(at).index.save()
    at.log().write_bytes(at.log().read_bytes().replace(b"demo:a", b"demo:z"))
    with pytest.raises(RegistryDamaged):
        opened(at)


def test_lines_that_are_gone_are_no_stat(at: Project) -> None:
    opened(at).index.save()
    at.log().unlink()
    with pytest.raises(RegistryDamaged):
        opened(at)


# --- a log that is another one -------------------------------------------------------------------------------


def _replaced(at: Project, tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    """Put another history of the same log in its place, as a key that is used in two places gives."""
    origin = at.folder()
    shutil.copytree(at.tree, tmp_path / "kept" / "project")
    for path in (origin / "log.jsonl", origin / "checkpoint", at.lock_file):
        path.unlink()
    shutil.rmtree(at.home / "state" / "pins")
    at.registry().append(entries)
    shutil.rmtree(at.home / "state" / "pins")
    settle(at)


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("same_process", [True, False])
def test_a_log_of_another_history_is_read_anew(at: Project, tmp_path: Path, count: int, *, same_process: bool) -> None:
    """Shorter, as long as the one that was read, or longer."""
    first = opened(at)
    first.index.save()
    _replaced(at, tmp_path, [build("demo:c", digest="77" * 32, key="88" * 32)] * count)
    if same_process and count >= 4:
        # The registry compares with what this process has read.
        with pytest.raises(RegistryDamaged):
            first.index.sync()
        return
    found = first if same_process else opened(at, sync=False)
    found.index.sync()
    assert set(found.index.latest) == {"demo:c"}
    assert found.index.builds(KEY) == []
    assert found.index.promoted == set()
    assert not found.index.gate_known({"type": "gate-failed", "digest": DIGEST, **GATE})
    assert [it["digest"] for it in found.index.builds("88" * 32)] == ["77" * 32] * count


def test_a_log_that_is_gone_takes_its_results_along(at: Project) -> None:
    first = opened(at)
    first.index.save()
    shutil.rmtree(at.folder())
    at.lock_file.unlink()
    found = opened(at)
    assert (found.index.latest, found.index.state()) == ({}, ())
    assert found.index.builds(KEY) == []


# --- which entry is the newest -------------------------------------------------------------------------------


def test_the_newest_entry_goes_by_time_between_logs_and_by_order_within_one(at: Project, tmp_path: Path) -> None:
    other = project(tmp_path, "other", "stranger")
    other.registry().append([decided("selected", digest="66" * 32, time="2031-06-01T00:00:00.000000Z")])
    shutil.copytree(other.root, at.root, dirs_exist_ok=True)
    found = opened(at)
    assert found.index.latest["demo:a"]["digest"] == "66" * 32
    # Later in the log, although its writer's clock was set back.
    first = next(log for log in at.root.iterdir() if log.name != other.folder().name)
    refs = at.registry().append([decided("selected", digest="77" * 32, time=LATEST)])
    refs += at.registry().append([decided("selected", digest="88" * 32, time="2000-01-01T00:00:00.000000Z")])
    found.index.sync()
    newest = found.index.latest["demo:a"]
    assert (newest["digest"], newest["origin"]) == ("88" * 32, f"ingot.local/{first.name}")
    assert (newest["index"], newest["time"]) == (refs[-1].index, LATEST)
    # Both logs at once, read anew: the same.
    shutil.rmtree(at.tree / "cache")
    assert opened(at).index.latest["demo:a"] == newest


def test_a_time_to_come_is_overtaken(at: Project) -> None:
    found = opened(at).index
    assert found.time_to_select("demo:unknown") is None
    assert found.time_to_select("demo:a") == "2031-01-01T00:00:00.001000Z"
    at.registry().append([build("demo:old", finished="2020-01-01T00:00:00.000000Z")])
    found.sync()
    # The log had seen a later time already.
    assert found.time_to_select("demo:old") == "2031-01-01T00:00:00.001000Z"


def test_what_is_accepted_gives_a_result_under_another_key(at: Project) -> None:
    origin = origin_of(at)
    more = {
        "key_parts": {"kind": "gguf"}, "inputs": {}, "reason": "the same bytes",
        "build": {"origin": origin, "index": 1, "key": KEY},
    }  # fmt: skip
    statement = decision_statement(
        "accept", {"target": "demo:a", "digest": DIGEST, "key": "99" * 32, **more}, time=LATER
    )
    at.registry().append([statement])
    found = opened(at).index
    (result,) = found.builds("99" * 32)
    assert (result["digest"], result["accepted"]["reason"]) == (DIGEST, "the same bytes")
    assert found.latest["demo:a"]["key"] == "99" * 32


# --- entries of this process ---------------------------------------------------------------------------------


def test_what_this_process_appends_is_taken_in_without_reading(at: Project) -> None:
    found = opened(at)
    found.read.clear()
    (ref,) = found.registry.append([build("demo:c", "77" * 32, "88" * 32)])
    entry = next(it for it in at.registry().entries(ref.origin) if it.index == ref.index)
    found.index.add(entry)
    assert found.read == []
    assert [it["digest"] for it in found.index.builds("88" * 32)] == ["77" * 32]
    assert found.index.latest["demo:c"]["time"] == LATER
    found.index.sync()
    assert (found.read, found.reread) == ([], [])
    found.index.save()
    # The next process reads the lines once: this one has only written them.
    assert opened(at).reread == [ref.origin]


def test_what_others_append_before_is_taken_in_too(at: Project) -> None:
    found = opened(at)
    at.registry().append([build("demo:d", "99" * 32, "aa" * 32)])
    (ref,) = found.registry.append([build("demo:c", "77" * 32, "88" * 32)])
    entry = next(it for it in at.registry().entries(ref.origin) if it.index == ref.index)
    found.index.add(entry)
    assert {"demo:c", "demo:d"} <= set(found.index.latest)
    assert [it["digest"] for it in found.index.builds("aa" * 32)] == ["99" * 32]
    assert [it["digest"] for it in found.index.builds("88" * 32)] == ["77" * 32]


def test_what_others_append_after_is_taken_in_too(at: Project) -> None:
    found = opened(at)
    (ref,) = found.registry.append([build("demo:c", "77" * 32, "88" * 32)])
    at.registry().append([build("demo:d", "99" * 32, "aa" * 32)])
    found.index.add(next(it for it in at.registry().entries(ref.origin) if it.index == ref.index))
    assert {"demo:c", "demo:d"} <= set(found.index.latest)
    assert [it["digest"] for it in found.index.builds("aa" * 32)] == ["99" * 32]


def test_what_is_committed_while_the_logs_are_read_is_left_to_the_next_time(at: Project) -> None:
    found = opened(at, sync=False)
    heads = found.registry.heads()
    at.registry().append([build("demo:c", "77" * 32, "88" * 32)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found.registry, "heads", lambda: heads)
        found.index.sync()
    assert "demo:c" not in found.index.latest
    assert [size for _origin, size, _root in found.index.state()] == [5]
    found.index.sync()
    assert found.index.latest["demo:c"]["digest"] == "77" * 32


def test_of_two_logs_the_one_that_gained_is_read_alone(at: Project, tmp_path: Path) -> None:
    other = project(tmp_path, "other", "stranger")
    other.registry().append([build("demo:z", "bb" * 32, "cc" * 32)])
    settle(other)
    shutil.copytree(other.root, at.root, dirs_exist_ok=True)
    own = next(f"ingot.local/{log.name}" for log in at.root.iterdir() if log.name != other.folder().name)
    first = opened(at)
    assert len(first.read) == len(first.proved) == 2
    first.index.save()
    for found in (first, opened(at)):
        for noted in (found.read, found.proved, found.reread):
            noted.clear()
        at.registry().append([decided("selected", digest="66" * 32, time=LATEST)])
        found.index.sync()
        assert found.proved == [own]
        assert all(since for _origin, since in found.read), "neither from its beginning"
        assert found.reread == []
        assert found.index.latest["demo:z"]["digest"] == "bb" * 32
    for log in at.root.glob("*/log.jsonl"):
        os.utime(log, ns=(10**18, 10**18))
    opened(at).index.save()
    assert opened(at).reread == []


@pytest.mark.parametrize("kind", ["build", "selected"])
def test_an_entry_that_is_none_of_ours_is_named(at: Project, kind: str) -> None:
    statement = build() if kind == "build" else decision_statement("selected", {"target": "demo:a", "digest": DIGEST})
    if kind == "build":
        statement["predicate"]["buildDefinition"]["externalParameters"] = 3
    at.registry().append([statement])
    with pytest.raises(RegistryDamaged) as caught:
        opened(at)
    assert caught.value.code == "E-REG-ENTRY"
    assert f"entry 5 of {origin_of(at)}" in str(caught.value)
    assert caught.value.hint == "`doit audit` shows more"


def test_evidence_that_is_missing_is_told_as_such(at: Project) -> None:
    large = receipt(files=[_file(number) for number in range(400)])
    at.registry().append([build_statement(large, at.registry().store_evidence)])
    for path in (at.folder() / "evidence").iterdir():
        path.unlink()
    with pytest.raises(RegistryDamaged) as caught:
        opened(at)
    assert caught.value.code == "E-REG-EVIDENCE"


def _file(number: int) -> dict[str, Any]:
    return {"path": f"{'x' * 150}{number}", "size": 7, "sha256": "55" * 32, "xxh3_128": "66" * 16}


# --- results -------------------------------------------------------------------------------------------------


def test_a_result_that_is_lost_or_damaged_comes_back_once(at: Project) -> None:
    found = opened(at)
    found.index.save()
    path = at.tree / "cache" / "results" / f"{KEY}.json"
    newest = found.index.latest["demo:a"]
    for lose in (path.unlink, lambda: path.write_bytes(b"")):
        lose()
        again = opened(at)
        again.read.clear()
        assert [it["digest"] for it in again.index.builds(KEY, newest)] == [DIGEST]
        assert again.read == [(origin_of(at), 0)]
    # Of a target that was never built nothing is looked for.
    again.read.clear()
    assert again.index.builds("00" * 32, newest) == []
    assert again.index.builds("00" * 32) == []
    assert again.read == []


def test_a_result_beyond_what_was_read_of_a_log_is_not_there_yet(at: Project) -> None:
    found = opened(at)
    ahead = receipt(target="demo:a", digest="66" * 32, key=KEY) | {"origin": origin_of(at), "index": 5}
    found.index._store.add_result(KEY, ahead)
    assert [it["digest"] for it in found.index.builds(KEY)] == [DIGEST]
    at.registry().append([build(digest="66" * 32)])
    found.index.sync()
    assert {it["digest"] for it in found.index.builds(KEY)} == {DIGEST, "66" * 32}


def test_an_index_is_lost_in_a_power_cut_rather_than_waited_for(at: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    write = disk.write_file_atomic

    def noted(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
        if path.name == "index.json":
            told.append(durable)
        write(path, data, mode, durable=durable)

    found = opened(at)
    monkeypatch.setattr(disk, "write_file_atomic", noted)
    found.index.save()
    assert told == [False]
