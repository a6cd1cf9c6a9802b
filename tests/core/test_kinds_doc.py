"""The page about all kinds: it is current, and says what the classes say."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from ingot.core import kinds_doc, stage
from ingot.core.kinds_text import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "kinds.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == kinds_doc.text(), "python -m ingot.core.kinds_doc > docs/kinds.md"


def test_every_format_has_its_words() -> None:
    assert set(FORMATS) == set(get_args(stage.Format))


@pytest.mark.parametrize("kind", stage.kinds())
def test_every_kind_says_once_what_it_measures(kind: str) -> None:
    names = [measure.metric for measure in stage.load_kind(kind).measures]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "row",
    [
        "| `rank` | whole number, at least 1, at most 1024 | `16` | Rank r of the two matrices |",
        "| `target_modules` | `all-linear` or list of text |",
        "| `sources[].path` | a path | none |",
        "| `sources[].python_stdlib` | `docstrings`, `topics` | none |",
        "- `evaluations`: a list of targets; takes evaluation or samples; filled by ingot",
        "| `sources[].fields.messages` | text | none |",
        "| `dedup.threshold` | number, greater than 0, at most 1 | `0.8` |",
        "| `files` | list of paths | none |",
        "| `revision` | text | none | the commit on the hub",
        "- `calibration`: one target; takes dataset; optional",
        "- `candidates`: a list of targets; takes coreml or gguf or hf or onnx",
    ],
)
def test_rows_say_names_ranges_and_defaults(row: str) -> None:
    assert f"\n{row}" in kinds_doc.text()
