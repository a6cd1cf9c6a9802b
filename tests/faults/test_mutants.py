"""The tests of key, store and log notice when one thing in them is changed: 90 of 100 such changes at the least."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import mutants

SOURCE = '''"""Text."""
LIMIT = 3


def f(a: int = 1, *, b: bool = True) -> str | None:
    """More text."""
    assert a > 0, "never"
    if a < LIMIT and not b:
        g(a)
        raise ValueError(f"{a + 1}")
    for _ in range(a - 1):
        continue
    return "x" if g(a) else None
'''


def test_one_thing_is_changed_at_a_time() -> None:
    found = {(mutant.line, mutant.what) for mutant in mutants.mutants(SOURCE)}
    assert found == {
        (2, "one more: 3"),
        (5, "one more: 1"),
        (5, "the other truth: True"),
        (8, "another comparison: a < LIMIT"),
        (8, "and for or: a < LIMIT and (not b)"),
        (8, "not left out: not b"),
        (9, "call left out: g(a)"),
        (10, "left out: raise ValueError(f'{a + 1}')"),
        (11, "another operator: a - 1"),
        (11, "one more: 1"),
        (12, "left out: continue"),
        (13, "None returned: return 'x' if g(a) else None"),
        (13, "condition turned: 'x' if g(a) else None"),
    }
    sources = [mutant.source for mutant in mutants.mutants(SOURCE)]
    assert len(set(sources)) == len(sources)
    for source in sources:
        compile(source, "mutant", "exec")


def test_a_mutant_meets_its_own_tests_first_and_the_quickest_before_others() -> None:
    seconds = {"t/test_key.py::slow": 2.0, "t/test_key.py::quick": 1.0, "t/test_x.py::far": 0.1, "t/test_x.py::no": 0.1}
    known = mutants.Known(seconds, {"key": {7: ["t/test_x.py::far", "t/test_key.py::slow"], 8: list(seconds)[:1]}})
    assert known.tests("key", 7) == ["t/test_key.py::slow", "t/test_x.py::far"]
    assert known.tests("key", 7, most=1) == ["t/test_key.py::slow"]
    assert known.tests("key", 7, most=0) == ["t/test_key.py::slow"], "its own are all tried"
    assert known.tests("key", 1) == ["t/test_key.py::slow", "t/test_x.py::far"], "what runs as it is imported"


def test_a_score_counts_what_met_no_test_as_alive() -> None:
    score = mutants.Score(killed=7, timeout=1, survived=1, untested=1)
    assert score.share == 0.8
    assert str(mutants.total({"a": score, "b": score})).startswith("16 of 20 killed (80.0%")


@pytest.mark.slow
def test_a_mutant_is_killed_by_a_test_that_looks_and_lives_with_one_that_does_not(tmp_path: Path) -> None:
    mutants.prepared(tmp_path)
    source = (tmp_path / "src/ingot/core/merkle.py").read_text()
    changed = mutants.Mutant(1, "other prefix", source.replace('b"\\x00"', 'b"\\x02"').replace("b'\\x00'", "b'\\x02'"))
    assert changed.source != source
    tests = ["tests/core/test_merkle.py"]
    assert mutants.outcome(tmp_path, "merkle", changed, tests) == "killed"
    assert mutants.outcome(tmp_path, "merkle", changed, ["tests/faults/test_mutants.py::" + _BLIND]) == "survived"
    assert mutants.outcome(tmp_path, "merkle", mutants.Mutant(1, "nothing", source), tests) == "survived"
    assert mutants.outcome(tmp_path, "merkle", changed, []) == "untested"


_BLIND = "test_a_score_counts_what_met_no_test_as_alive"


@pytest.mark.slow
@pytest.mark.fault("X", "one thing in key, store, digest, note, log, registry or index is changed: a test goes red")
def test_nine_of_ten_mutants_are_killed(cases: Callable[[int], None]) -> None:
    """``INGOT_TESTS_MUTANTS=6`` takes each sixth."""
    every = int(os.environ.get("INGOT_TESTS_MUTANTS", "1"))
    tests = [*mutants.default_tests(), "-k", " and ".join(f"not {name}" for name in mutants._NOT)]
    score = mutants.total(mutants.hunt(mutants.MODULES, tests, every))
    cases(score.killed + score.timeout + score.survived + score.untested)
    assert score.share >= 0.9, str(score)
