"""The index is derived: whatever happens to it, to the clock or to the logs, it ends as the logs say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.core import disk
from ingot.core.index import Index
from ingot.core.registry import Entry, Registry
from ingot.core.statement import build_statement, decision_statement
from ingot.errors import DiskFailed, RegistryDamaged
from projectkit import Sandbox
from recordkit import receipts, registry_of, store_of


@pytest.fixture
def base(chain: Sandbox) -> Sandbox:
    """A built project whose caches other than objects are dropped."""
    shutil.rmtree(chain.root / "cache" / "results")
    (chain.root / "cache" / "index.json").unlink()
    return chain


def opened(sandbox: Sandbox) -> tuple[Index, Registry]:
    registry = registry_of(sandbox)
    index = Index(registry, store_of(sandbox))
    index.sync()
    return index, registry


def build(sandbox: Sandbox, target: str, *, digest: str, finished: str, **changes: Any) -> dict[str, Any]:
    receipt = receipts(sandbox)[target] | {"digest": digest} | changes
    receipt["timings"] = receipt["timings"] | {"finished": finished}
    return build_statement(receipt)


def test_a_clock_that_was_set_back_changes_nothing(base: Sandbox) -> None:
    registry_of(base).append([build(base, "s:a", digest="1" * 64, finished="2001-01-01T00:00:00.000Z")])
    index, registry = opened(base)
    assert index.latest["s:a"]["digest"] == "1" * 64
    index.save()
    fields = {"target": "s:a", "spec": "s", "key": index.latest["s:a"]["key"], "digest": "2" * 64}
    registry.append([decision_statement("selected", fields, time="2000-01-01T00:00:00Z")])
    assert opened(base)[0].latest["s:a"]["digest"] == "2" * 64


def test_a_log_that_was_replaced_by_a_longer_one_is_read_anew(base: Sandbox, tmp_path: Path) -> None:
    """A key used on two machines: both logs go on from one point, and the work tree changes from one to the other."""
    registry, home = base.root / "registry", base.home
    shutil.copytree(registry, tmp_path / "before")
    shutil.copytree(home, tmp_path / "other")
    registry_of(base).append([build(base, "s:a", digest="1" * 64, finished="2031-01-01T00:00:00.000Z")])
    index, _registry = opened(base)
    index.save()
    key = str(index.latest["s:a"]["key"])
    shutil.rmtree(registry)
    shutil.copytree(tmp_path / "before", registry)
    (base.root / "ingot.lock").unlink()
    other = Sandbox(base.root, tmp_path / "other")
    for number, day in ((2, 2), (3, 3)):
        text = build(other, "s:a", digest=str(number) * 64, finished=f"2031-01-0{day}T00:00:00.000Z")
        registry_of(other).append([text])
    with pytest.raises(RegistryDamaged, match="not those that were seen before"):
        opened(base)
    # A user who has not seen the other state, and whose index was made from it: as after a copied home.
    shutil.copy(home / "state" / "ingot" / "seal", tmp_path / "other" / "state" / "ingot" / "seal")
    index, _registry = opened(other)
    assert index.latest["s:a"]["digest"] == "3" * 64
    assert "1" * 64 not in [item["digest"] for item in index.builds(key)], "it is in no log any more"


@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_a_result_lost_in_a_power_cut_comes_back_from_the_log(base: Sandbox, damage: str) -> None:
    index, _registry = opened(base)
    index.save()
    newest = index.latest["s:a"]
    path = base.root / "cache" / "results" / f"{newest['key']}.json"
    path.write_bytes(b"") if damage == "emptied" else path.unlink()
    index, _registry = opened(base)
    assert [item["digest"] for item in index.builds(newest["key"], newest)] == [newest["digest"]]
    assert base.states() == {"s:a": "fresh", "s:b": "fresh"}


def test_what_no_log_holds_is_looked_for_once(base: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    index, registry = opened(base)
    newest = index.latest["s:a"] | {"digest": "9" * 64}
    read: list[str] = []

    def entries(origin: str, *, since: int) -> Iterator[Entry]:
        read.append(origin)
        return iter(())

    monkeypatch.setattr(registry, "entries", entries)
    for _ in range(3):
        index.builds(newest["key"], newest)
    assert len(read) == 1


def test_what_builds_took_is_kept_and_comes_back_from_the_log(base: Sandbox) -> None:
    index, _registry = opened(base)
    index.save()
    kept = opened(base)[0].history.to_json()
    assert set(kept["builds"]["command"]) == {"s:a", "s:b"}
    registry_of(base).append([build(base, "s:a", digest="1" * 64, finished="2031-01-01T00:00:00.000Z")])
    index, _registry = opened(base)
    assert len(index.history.to_json()["builds"]["command"]["s:a"]) == 2
    (base.root / "cache" / "index.json").unlink()
    assert opened(base)[0].history.to_json() == index.history.to_json()


@pytest.mark.parametrize("text", ["", "\0\0\0", "[]", '{"format": 4}', '{"format": 4, "heads": {"x": 3}}', "{"])
def test_a_damaged_index_is_made_anew(base: Sandbox, text: str) -> None:
    (base.root / "cache" / "index.json").write_text(text)
    index, _registry = opened(base)
    assert set(index.latest) == {"s:a", "s:b"}


def test_results_of_a_lost_index_are_filed_anew(base: Sandbox) -> None:
    """Without an index nobody knows which of them the logs still hold."""
    results = base.root / "cache" / "results"
    results.mkdir()
    (results / f"{'7' * 64}.json").write_text('{"format": 1, "builds": []}')
    opened(base)
    assert not (results / f"{'7' * 64}.json").exists()
    assert len(list(results.iterdir())) == 2


def test_stale_results_that_cannot_be_removed_are_an_error(base: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    (base.root / "cache" / "results").mkdir()
    (base.root / "cache" / "results" / f"{'7' * 64}.json").touch()

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DiskFailed, match="permission denied"):
        opened(base)


@pytest.mark.fault("N1", "a process reads all logs anew while another looks for a result")
def test_no_result_is_missing_while_all_are_filed_anew(chain: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever found nothing would build again what is there."""
    keys = {str(receipt["key"]) for receipt in receipts(chain).values()}
    stray = chain.root / "cache" / "results" / f"{'7' * 64}.json"
    stray.write_bytes(b"")
    (chain.root / "cache" / "index.json").unlink()
    seen = []
    real = disk.write_file_atomic

    def looking(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
        real(path, data, mode, durable=durable)
        seen.append(all(store_of(chain).read_result(key) for key in keys))

    monkeypatch.setattr(disk, "write_file_atomic", looking)
    opened(chain)
    assert seen and all(seen)
    assert not stray.exists()
