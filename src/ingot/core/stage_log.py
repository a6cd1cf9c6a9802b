"""What a failed stage printed, told with its error: where the log lies, and its last lines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.core.redact import redact
from ingot.errors import IngotError, StageFailed

#: How much of a failed stage's output is shown with its error.
_TAIL_LINES, _TAIL_BYTES = 5, 4096
#: Less free space than this is none.
_FULL_BYTES = 1 << 20


@contextmanager
def named(log: Path, root: Path) -> Iterator[None]:
    """Add where the stage's output lies to what fails, when there is any or the stage itself failed."""
    try:
        yield
    except IngotError as error:
        if isinstance(error, StageFailed) or _size(log):
            shown = f"log: {os.path.relpath(log, root)}"
            # What a stage refuses it explains: the chatter of libraries before that would only bury it.
            tail = _last_lines(log) if isinstance(error, StageFailed) else []
            error.facts = (*error.facts, *tail, *_no_room(log), shown)
        raise


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _no_room(log: Path) -> list[str]:
    """That the disk is full: a program may have failed for that, with no room left to say so."""
    try:
        free = shutil.disk_usage(log.parent).free
    except OSError:
        return []
    return [f"the disk of cache/ is full: {free // 1000} kB are free"] if free < _FULL_BYTES else []


def _last_lines(log: Path) -> list[str]:
    """The end of a failed stage's output, as a person would look at it first; nothing of a long traceback."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    if "Traceback (most recent call last)" in text:
        return []
    return [f"| {redact(line)[:200]}" for line in text.splitlines()[-_TAIL_LINES:] if line.strip()]
