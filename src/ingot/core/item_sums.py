"""What an evaluation found document by document, read back from its files: what two of them are paired by."""

from __future__ import annotations

import json
from pathlib import Path

from ingot.core.paired import ANSWERS, RATIOS, Documents, Sums, of_item, sums


def read_sums(folder: Path, metric: str, value: object) -> Sums | None:
    """The sums of a metric that was recorded with a value; None where no file gives that value.

    A file of another form than this reads gives another value, or none: nothing is paired by it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    wanted = (
        ("documents.jsonl", RATIOS.get(metric)),
        ("answers.jsonl", ANSWERS.get(metric)),
        ("items.jsonl", of_item(metric)),
    )
    found = (sums(ratio, _rows(folder / name), value) for name, ratio in wanted if ratio and (folder / name).is_file())
    return next((it for it in found if it is not None), None)


def _rows(path: Path) -> Documents:
    """The lines of a file; none where it cannot be read."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]
