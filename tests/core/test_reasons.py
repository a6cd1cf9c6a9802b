"""Why a target is stale, in words: what differs is named, the most telling first, and nothing of Python shows."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.core.graph import Node
from ingot.core.reasons import explain, found_again, summary

EMPTY: dict[str, Any] = {"kind": "k", "revision": 1, "params": {}, "inputs": {}, "tools": {}}


def details(old: dict[str, Any], new: dict[str, Any], **of_node: Any) -> list[str]:
    """The reasons between two sets of key parts."""
    facts = {"kind": "k", "revision": 1, "reproducibility": "exact", "produces": "any", "params": {}, **of_node}
    found = explain(EMPTY | new, {"key_parts": EMPTY | old}, Node(**facts))
    return [reason.detail for reason in found]


def test_the_most_telling_parameter_comes_first() -> None:
    old = {"params": {"rank": 8, "alpha": None, "zero": 1, "beta": True}}
    new = {"params": {"rank": 16, "alpha": 2, "zero": None, "beta": False}}
    assert details(old, new) == ["beta true → false", "rank 8 → 16", "alpha not set → 2", "zero 1 → not set"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "a 1 → 2"), (2, "a 1 → 2 (+1 more)"), (3, "a 1 → 2 (+2 more)")]
)
def test_a_start_line_has_one_reason_and_counts_the_others(count: int, text: str) -> None:
    names = "abc"[:count]
    old, new = ({"params": dict.fromkeys(names, value)} for value in (1, 2))
    found = explain(EMPTY | new, {"key_parts": EMPTY | old}, Node("k", 1, "exact", "any", {})) if count else ()
    assert summary(found) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("abcde", "abXde", "1 of 5 (three)"),
        ("abcde", "vwxyz", "5 of 5 (one, two, three and 2 more)"),
        ("abcd", "abcde", "4 → 5 artifacts, 1 new"),
        ("abcdef", "Xbcde", "6 → 5 artifacts, 1 new, 2 gone"),
    ],
)
def test_of_several_inputs_those_that_differ_are_named(before: str, after: str, text: str) -> None:
    old, new = ({"inputs": {"candidates": [f"sha256:{char}" for char in chars]}} for chars in (before, after))
    names = ("one", "two", "three", "four", "five")
    assert details(old, new, inputs={"candidates": names}) == [f"input candidates changed: {text}"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"path": "specs/a.txt"}, "source specs/a.txt changed"),
        ({"paths": ["scripts/count.py", "data/*.jsonl"]}, "files scripts/count.py, data/*.jsonl changed"),
        ({"paths": ["a"]}, "file a changed"),
        ({"paths": ["a", "b", "c", "d"]}, "files a, b, c and 1 more changed"),
        ({"python_stdlib": "docstrings"}, "source python_stdlib docstrings changed"),
    ],
)
def test_sources_are_named_as_they_were_written(source: dict[str, Any], text: str) -> None:
    old, new = ({"params": {"files": {"source": f"tree:{digit * 64}"}}} for digit in "12")
    assert details(old, new, sources=(("/files", source, "specs"),)) == [text]


def test_a_result_of_another_target_is_named_with_it() -> None:
    receipt = {"target": "s:a", "timings": {"finished": "2026-11-20T10:00:01.5Z"}}
    assert found_again(receipt, "s:a").detail == "found again, built 2026-11-20 10:00"
    assert found_again(receipt, "t:a").detail == "found again, built 2026-11-20 10:00 as s:a"


def test_a_parameter_whose_name_ends_in_source_is_no_source() -> None:
    assert details({"params": {"data_source": "a"}}, {"params": {"data_source": "b"}}) == ["data_source a → b"]
    assert details({"params": {"x": {"source": "a"}}}, {"params": {"x": {"source": "b"}}}) == ["x.source a → b"]
    old, new = ({"params": {"x": {"source": f"file:{digit * 64}"}}} for digit in "ab")
    assert details(old, new) == ["source x changed"]
