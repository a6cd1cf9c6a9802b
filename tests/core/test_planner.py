"""The plan: which of several results of one key a target has."""

from __future__ import annotations

from typing import Any

import pytest

from ingot.core import plan
from ingot.core.graph import Node
from ingot.core.plan import _choose


def build(origin: str, index: int, digest: str) -> dict[str, Any]:
    return {"origin": origin, "index": index, "digest": digest}


#: Oldest first: the bytes d were measured three times, by targets of two logs.
BUILDS = [build("x", 1, "d"), build("x", 2, "e"), build("y", 1, "d"), build("y", 7, "d")]


@pytest.mark.parametrize(
    ("newest", "chosen"),
    [
        (None, 0),
        (build("x", 1, "d"), 0),
        (build("y", 1, "d"), 2),
        (build("x", 2, "e"), 1),
        # A ``selected`` entry names a digest only: its last measurements.
        (build("x", 9, "d"), 3),
        # The newest entry is of another key, and its result none of this one's.
        (build("x", 9, "f"), 0),
    ],
)
def test_the_newest_entry_decides_and_the_oldest_result_otherwise(newest: dict[str, Any] | None, chosen: int) -> None:
    assert _choose(BUILDS, newest) is BUILDS[chosen]
    assert _choose([], newest) is None


def test_what_is_missing_is_named_once_with_one_command() -> None:
    def lacking(name: str, kind: str, extra: str | None) -> Node:
        facts: dict[str, Any] = {"kind": kind, "revision": 1, "reproducibility": "deterministic", "produces": "any"}
        return Node(**facts, params={}, spec="s", name=name, target=name, needs=("no-such-package",), extra=extra)

    error = plan.missing_tools([lacking("a", "x", "ml"), lacking("b", "x", "ml"), lacking("c", "y", None)])
    assert error is not None
    assert error.facts == ("s:a and 1 more (x) needs no-such-package", "s:c (y) needs no-such-package")
    assert error.hint == "pip install 'ingot[all]'"
    assert plan.missing_tools([]) is None
