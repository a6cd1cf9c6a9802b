"""What an evaluation found document by document, read back from its files: what two of them are paired by.

Each kind keeps it in its own form. Whatever is read must give the value that was recorded: a file of another form gives
another value, or none, and nothing is paired by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.pairs import ANSWERS, RATIOS, Documents, Ratio, Sums, of_item, sums

if TYPE_CHECKING:
    from ingot.core.store import Store

#: Of the number of a window.
_DIGITS = 8
#: Right or not, of ``predictions.jsonl``.
_PREDICTED = {"accuracy": Ratio(lambda row: row["found"] == row["wanted"], lambda _row: 1.0)}


def read_sums(folder: Path, metric: str, value: object) -> Sums | None:
    """The sums of a metric that was recorded with a value; None where no file gives that value, or several do."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found = [sums(ratio, rows, value) for ratio, rows in _forms(folder, metric)]
    known = {it.ids + it.tops: it for it in found if it is not None}
    return next(iter(known.values())) if len(known) == 1 else None


def recorded_sums(store: Store, receipt: Mapping[str, Any], metric: str) -> Sums | None:
    """The sums of a metric of a recorded measurement; None where its files are not here and whole."""
    digest = str(receipt["digest"])
    if store.presence(digest, receipt["files"])[0] != "present":
        return None
    return read_sums(store.object_path(digest), metric, receipt["metrics"][metric].get("value"))


def _forms(folder: Path, metric: str) -> Iterator[tuple[Ratio, Documents]]:
    if metric in RATIOS:
        yield RATIOS[metric], [_named(row) for row in _rows(folder / "documents.jsonl")]
    for name, ratios in (("answers", ANSWERS), ("predictions", _PREDICTED)):
        if metric in ratios:
            yield ratios[metric], _rows(folder / f"{name}.jsonl")
    items = _rows(folder / "items.jsonl")
    if items and "results" in items[0]:
        yield from _of_harness(items, metric)
    else:
        yield of_item(metric), items


def _of_harness(items: Documents, metric: str) -> Iterator[tuple[Ratio, Documents]]:
    """Items of each task and filter of a harness: of its name for the metric, ours has more words before and after."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in items:
        for name, result in dict(item["results"]).items():
            if name in metric:
                row = {"id": f"{item['item']} {item['doc']}", name: result}
                groups.setdefault((str(item["task"]), str(item["filter"]), name), []).append(row)
    for (_, _, name), rows in groups.items():
        yield of_item(name) if name != "exact_match" else Ratio(lambda row: row["exact_match"], lambda _row: 1.0), rows


def _named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A document is named by its content. Windows are numbered: that they hold the same text shows in what it takes."""
    name = row.get("id")
    window = isinstance(name, str) and len(name) == _DIGITS and name.isdecimal()
    return {**row, "id": f"{name} {row.get('tokens')} {row.get('bytes')}"} if window else row


def _rows(path: Path) -> Documents:
    """The lines of a file; none where it cannot be read."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]
