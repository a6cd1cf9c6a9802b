"""Keys: golden vectors, and what must and must not change them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.core.graph import Node
from ingot.core.key import key_of, key_parts
from ingot.core.sources import SourceReader
from ingot.core.stage import load_kind
from ingot.core.statcache import StatCache
from ingot.errors import RefusedInput

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parent.parent / "golden" / "key.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: str(vector["parts"]["kind"]))
def test_golden_vectors(vector: dict[str, Any]) -> None:
    assert hashlib.sha256(vector["preimage"].encode()).hexdigest() == vector["key"]
    assert key_of(vector["parts"]) == vector["key"]


def node(**changes: Any) -> Node:
    facts: dict[str, Any] = {"kind": "k", "revision": 1, "reproducibility": "seeded", "produces": "any"}
    named: dict[str, Any] = {"spec": "s", "name": "t", "target": "t", "seed": 7, "single_roles": ("model",)}
    return Node(**(facts | named | {"params": {"a": 1}, "inputs": {"model": ("m",)}} | changes))


def parts(made: Node, digest: str = "aa", tools: dict[str, str] | None = None) -> dict[str, Any]:
    return key_parts(made, {"model": (digest,)}, ("file:11",) * len(made.sources), tools or {"torch": "2"}, {})


def test_content_changes_the_key() -> None:
    base = key_of(parts(node()))
    changed = [
        parts(node(kind="other")),
        parts(node(revision=2)),
        parts(node(params={"a": 2})),
        parts(node(seed=8)),
        parts(node(seed=None)),
        parts(node(single_roles=())),
        parts(node(), digest="bb"),
        parts(node(), tools={"torch": "3"}),
    ]
    keys = {key_of(each) for each in changed}
    assert len(keys) == len(changed)
    assert base not in keys


def test_names_places_and_lines_do_not_change_the_key() -> None:
    base = key_of(parts(node()))
    assert key_of(parts(node(spec="x", name="y", target="z", file="other.yaml", line=9, hidden=True))) == base
    assert key_of(parts(node(preload=("torch",), needs=("rich",), extra="ml", network=True))) == base


def test_a_source_counts_by_its_digest_and_not_by_its_path() -> None:
    def with_path(path: str) -> dict[str, Any]:
        params = {"sources": [{"path": path, "python_stdlib": None}]}
        return parts(node(params=params, sources=(("/sources/0", {"path": path}, "specs"),)))

    assert with_path("a.jsonl")["params"] == {"sources": [{"source": "file:11"}]}
    assert key_of(with_path("a.jsonl")) == key_of(with_path("b.jsonl"))


def test_a_parameter_that_changes_no_byte_is_in_no_key() -> None:
    def every(seconds: float, other: int = 1) -> dict[str, Any]:
        params = {"a": other, "every": seconds, "rounds": [{"b": 1, "every": seconds}]}
        return parts(node(params=params, keyless=("/every", "/rounds/0/every")))

    assert every(1.5)["params"] == {"a": 1, "rounds": [{"b": 1}]}
    assert key_of(every(1.5)) == key_of(every(60.0))
    assert key_of(every(1.5, other=2)) != key_of(every(1.5))


@pytest.mark.parametrize(
    ("kind", "params", "pointers"),
    [
        ("adapter", {"steps": 1}, ["/checkpoint_every"]),
        ("prune", {"sparsity": 0.5}, []),
        (
            "prune",
            {"sparsity": 0.5, "schedule": {"steps": 2, "recover": {"steps": 1}}},
            ["/schedule/recover/checkpoint_every"],
        ),
        ("fetch", {"path": "a.txt"}, ["/expect"]),
    ],
)
def test_kinds_say_which_parameters_change_no_byte(kind: str, params: dict[str, Any], pointers: list[str]) -> None:
    assert list(load_kind(kind).model_validate_json(json.dumps(params), strict=True).keyless()) == pointers


def test_numbers_without_a_canonical_form_are_refused() -> None:
    for value in (float("nan"), float("inf"), 2**53):
        with pytest.raises(RefusedInput) as caught:
            key_of(parts(node(params={"a": value})))
        assert caught.value.code == "E-JSON"


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8")) | st.booleans(),
    )
)
def test_the_order_of_parameters_does_not_change_the_key(params: dict[str, Any]) -> None:
    turned = dict(reversed(params.items()))
    assert key_of(parts(node(params=params))) == key_of(parts(replace(node(), params=turned)))


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path: Path) -> SourceReader:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.txt").write_text("1")
    (tmp_path / "p" / "b.txt").write_text("2")
    (tmp_path / "p" / "c.md").write_text("3")
    return SourceReader(tmp_path, StatCache(tmp_path / "stat.json"))


@pytest.mark.parametrize(
    "source",
    [
        {"path": "p/a.txt"},
        {"path": "p"},
        {"path": "p/*.txt"},
        {"paths": ["p/a.txt", "p/c.md"], "base": "p"},
        {"python_stdlib": "topics"},
    ],
    ids=str,
)
def test_a_snapshot_has_the_digest_that_was_planned(
    reader: SourceReader, tmp_path: Path, source: dict[str, Any]
) -> None:
    path, digest = reader.snapshot(source, tmp_path / "snap")
    assert digest == reader.digest(source)
    assert path.exists()


def test_a_renamed_file_has_the_same_digest_and_an_edited_one_another(reader: SourceReader, tmp_path: Path) -> None:
    before = reader.digest({"path": "p/a.txt"})
    (tmp_path / "p" / "a.txt").rename(tmp_path / "p" / "z.txt")
    assert reader.digest({"path": "p/z.txt"}) == before
    (tmp_path / "p" / "z.txt").write_text("other")
    assert reader.digest({"path": "p/z.txt"}) != before


def test_names_inside_a_folder_count(reader: SourceReader, tmp_path: Path) -> None:
    before = reader.digest({"path": "p"})
    (tmp_path / "p" / "a.txt").rename(tmp_path / "p" / "z.txt")
    assert reader.digest({"path": "p"}) != before
    (tmp_path / "p").rename(tmp_path / "q")
    assert reader.digest({"path": "q"}) != before
    (tmp_path / "q" / "z.txt").rename(tmp_path / "q" / "a.txt")
    assert reader.digest({"path": "q"}) == before


def test_an_edit_under_the_same_size_and_time_is_seen_once_the_stat_differs(
    reader: SourceReader, tmp_path: Path
) -> None:
    path = tmp_path / "p" / "a.txt"
    before = reader.digest({"path": "p/a.txt"})
    path.write_text("9")
    assert reader.digest({"path": "p/a.txt"}) != before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "p/none.txt"}, "no such file"),
        ({"path": "p/*.csv"}, "no file matches"),
        ({"path": "p/link"}, "symbolic links are not followed"),
    ],
)
def test_sources_that_cannot_be_read(
    reader: SourceReader, tmp_path: Path, source: dict[str, str], message: str
) -> None:
    (tmp_path / "p" / "link").symlink_to("a.txt")
    with pytest.raises(RefusedInput, match=message) as caught:
        reader.digest(source)
    assert caught.value.code == "E-SOURCE"


def test_the_documented_vectors_are_the_golden_ones() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    for vector in GOLDEN:
        assert f"{vector['preimage'].partition(chr(10))[2]}\n{vector['key']}" in text


def test_a_file_that_two_patterns_mean_is_there_once(reader: SourceReader, tmp_path: Path) -> None:
    source = {"paths": ["p/a.txt", "p/*.txt", "p"], "base": ""}
    _path, digest = reader.snapshot(source, tmp_path / "snap")
    assert digest == reader.digest(source) == reader.digest({"paths": ["p"], "base": ""})


@pytest.mark.parametrize("source", [{"path": "p/a.txt"}, {"path": "p"}, {"path": "p/*"}], ids=str)
@pytest.mark.parametrize("step", ["hash_file", "snapshot"])
def test_a_file_that_vanishes_is_a_source_that_cannot_be_read(
    reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], step: str
) -> None:
    gone = tmp_path / "p" / "a.txt"
    real = os.open

    def vanishing(path: Any, *arguments: Any) -> int:
        if Path(path) == gone:
            gone.unlink()
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", vanishing)
    with pytest.raises(RefusedInput) as caught:
        reader.digest(source) if step == "hash_file" else reader.snapshot(source, tmp_path / "snap")
    assert caught.value.code == "E-SOURCE"


@pytest.mark.parametrize("path", ["p/*.txt", "p/link.txt", "p"])
@pytest.mark.parametrize("goal", ["a.txt", "nowhere", "."])
def test_links_are_refused_wherever_they_are_met(reader: SourceReader, tmp_path: Path, path: str, goal: str) -> None:
    (tmp_path / "p" / "link.txt").symlink_to(goal)
    with pytest.raises(RefusedInput) as caught:
        reader.digest({"path": path})
    assert caught.value.code in {"E-SOURCE", "E-OUTPUT-FILE"}


@pytest.mark.parametrize(("pattern", "refused"), [("p/**/*.txt", True), ("p/*/x.txt", True), ("p/q*/*.txt", False)])
def test_a_glob_that_cannot_look_into_a_folder_is_refused(
    reader: SourceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, *, refused: bool
) -> None:
    closed = tmp_path / "p" / "closed"
    closed.mkdir()
    (tmp_path / "p" / "q").mkdir()
    (tmp_path / "p" / "q" / "x.txt").write_text("x")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if isinstance(path, Path | str) and Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    if refused:
        with pytest.raises(RefusedInput, match="permission denied"):
            reader.digest({"path": pattern})
    else:
        assert reader.digest({"path": pattern}).startswith("tree:")


def test_a_file_changed_in_the_tick_in_which_it_was_read_is_read_again(tmp_path: Path) -> None:
    """Reading a large file takes longer than a tick: what counts is when the reading began."""
    cache, path = StatCache(tmp_path / "stat.json"), tmp_path / "x"
    path.write_bytes(b"x")
    status = os.lstat(path)
    began = max(status.st_mtime_ns, status.st_ctime_ns)
    time.sleep(0.15)
    cache.put("x", status, "hash", taken_ns=began + 1_000_000)
    assert cache.get("x", status) is None
    cache.put("x", status, "hash", taken_ns=began + 150_000_000)
    assert cache.get("x", status) == "hash"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1, "files": 3}', None])
def test_a_stat_cache_that_cannot_be_read_costs_time_only(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "stat.json"
    path.mkdir() if content is None else path.write_text(content)
    assert StatCache(path).get("x", os.lstat(tmp_path)) is None
