"""What evaluations keep of each document, in the form of each kind, and what is not used because it is another form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ingot.core.item_sums import read_sums
from ingot.core.pairs import RESAMPLES

Rows = list[dict[str, Any]]
DOCUMENTS: Rows = [
    {"id": "a", "tokens": 10, "nll": 20.0, "bytes": 40, "ref_nll": 18.0, "ref_bytes": 40, "kl": 1.0, "agree": 9},
    {"id": "b", "tokens": 30, "nll": 90.0, "bytes": 80, "ref_nll": 87.0, "ref_bytes": 60, "kl": 2.0, "agree": 20},
]
ANSWERS: Rows = [
    {"id": "a", "exact": True, "pattern": None, "ended": True},
    {"id": "b", "exact": False, "pattern": True, "ended": False},
    {"id": "c", "exact": False, "pattern": False, "ended": True},
]
MATCHED: Rows = [{"id": "a", "exact": True, "rouge_l": 1.0}, {"id": "b", "exact": False, "rouge_l": 0.5}]
PREDICTED: Rows = [{"id": "a", "wanted": 1, "found": 1}, {"id": "b", "wanted": 1, "found": None}]


def item(task: str, number: int, results: Mapping[str, Any], how: str = "none") -> dict[str, Any]:
    return {"task": task, "filter": how, "item": number, "doc": f"h{number}", "results": dict(results)}


HARNESS: Rows = [
    item("one", 0, {"acc": 1.0, "acc_norm": 0.0}),
    item("one", 1, {"acc": 0.0, "acc_norm": 0.0}),
    item("two", 0, {"exact_match": 1.0}, "strict-match"),
    item("two", 0, {"exact_match": 1.0}, "flexible-extract"),
    item("two", 1, {"exact_match": 0.0}, "strict-match"),
    item("two", 1, {"exact_match": 1.0}, "flexible-extract"),
    item("two", 2, {"exact_match": 0.0}, "strict-match"),
    item("two", 2, {"exact_match": 0.0}, "flexible-extract"),
]


@pytest.mark.parametrize(
    ("name", "rows", "metric", "value"),
    [
        ("documents", DOCUMENTS, "nll", 110 / 40),
        ("documents", DOCUMENTS, "nll_difference", 5 / 40),
        ("documents", DOCUMENTS, "kl_divergence", 3 / 40),
        ("documents", DOCUMENTS, "top1_agreement", 29 / 40),
        ("documents", DOCUMENTS, "bits_per_byte", 110 / 120 / 0.6931471805599453),
        ("documents", DOCUMENTS, "perplexity", math.exp(110 / 40)),
        ("documents", DOCUMENTS, "bits_per_byte_difference", (110 / 120 - 105 / 100) / math.log(2)),
        ("answers", ANSWERS, "exact_match", 1 / 3),
        ("answers", ANSWERS, "pattern_accuracy", 2 / 3),
        ("answers", ANSWERS, "answers_ended", 2 / 3),
        ("items", MATCHED, "exact_match", 0.5),
        ("items", MATCHED, "rouge_l", 0.75),
        ("predictions", PREDICTED, "accuracy", 0.5),
        ("items", HARNESS, "one_acc", 0.5),
        ("items", HARNESS, "one_acc_norm", 0.0),
        ("items", HARNESS, "two_exact_match_strict", 1 / 3),
        ("items", HARNESS, "two_exact_match_flexible", 2 / 3),
    ],
)
def test_the_sums_of_each_form_give_what_was_recorded(
    tmp_path: Path, name: str, rows: Rows, metric: str, value: float
) -> None:
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_sums(tmp_path, metric, value)
    assert found is not None
    assert found.value() == pytest.approx(value)
    assert read_sums(tmp_path, metric, value + 0.01) is None, "another value is of another form"


@pytest.mark.parametrize(
    "rows", [[], [{"id": "a"}], [{"nll": 1, "tokens": 1}], [{"id": "a", "nll": "x", "tokens": 1}], [5]]
)
def test_what_is_of_another_form_is_not_used(tmp_path: Path, rows: list[Any]) -> None:
    assert read_sums(tmp_path, "nll", 1.0) is None, "there is no file"
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_sums(tmp_path, "nll", 1.0) is None
    assert read_sums(tmp_path, "nll", True) is None
    assert read_sums(tmp_path, "bytes", 1.0) is None
    (tmp_path / "documents.jsonl").write_text("{")
    assert read_sums(tmp_path, "nll", 1.0) is None


def test_ids_that_come_twice_pair_nothing(tmp_path: Path) -> None:
    rows = [DOCUMENTS[0], DOCUMENTS[0]]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_sums(tmp_path, "nll", 2.0) is None


def test_what_fits_twice_pairs_nothing(tmp_path: Path) -> None:
    rows = [item("one", 0, {"acc": 1.0}), item("one", 1, {"acc": 0.0})]
    rows += [item("two", 0, {"acc": 0.0}), item("two", 1, {"acc": 1.0})]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_sums(tmp_path, "acc", 0.5) is None


def test_a_difference_of_fractions_is_drawn_as_one(tmp_path: Path) -> None:
    """Of documents that are all alike no draw differs, and the interval is the value itself."""
    rows = [{**DOCUMENTS[0], "id": name} for name in "abc"]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_sums(tmp_path, "bits_per_byte_difference", (20 - 18) / 40 / math.log(2))
    assert found is not None and found.draws() == pytest.approx([found.value()] * RESAMPLES)


def test_windows_are_named_by_what_they_hold(tmp_path: Path) -> None:
    names = []
    for size in (40, 40, 41):
        rows = [{**row, "id": f"{at:08d}", "bytes": size} for at, row in enumerate(DOCUMENTS)]
        (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read_sums(tmp_path, "nll", 110 / 40)
        assert found is not None
        names.append(found.ids)
    assert names[0] == names[1] != names[2]
