"""``doit audit``: prove that logs and artifacts are what they were."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import IngotCommand
from ingot.commands.screen import Screen, duration_text, size_text
from ingot.errors import DiskFailed

if TYPE_CHECKING:
    from ingot.core.audit import Audit as Result

#: Seconds of silence before a person is told how far it is, and between two such lines.
_PATIENCE = 1.0
_SHOWN_NOTES = 20


class Audit(IngotCommand):
    """Check the logs, the artifacts, the metrics that follow from bytes and the lineage; repairs nothing."""

    name = "audit"
    doc_purpose = "check logs, signatures, pins, artifacts, metrics and lineage"
    doc_usage = "[--json]"
    doc_description = (
        "Reads every artifact whole. Exit code 0, 4 (the store is damaged) or 5 (a registry check failed)."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, 0)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:  # noqa: ARG002 - the protocol
        """0, 4 or 5: the design's exit codes."""
        started = time.monotonic()
        result = _audit(_Ticker(quiet=bool(options["json"])))
        if options["json"]:
            screen.json(to_json(result))
        else:
            _show(screen, result, time.monotonic() - started)
        return result.exit_code


def _audit(ticker: _Ticker) -> Result:
    """The audit of the project here. Index and specs are left alone: a damaged log must not stop it."""
    from ingot.core.audit import audit
    from ingot.core.log import logs_in
    from ingot.core.project import find_root
    from ingot.core.registry import Registry, default_keys_dir, default_pins_dir
    from ingot.core.seal import user_seal
    from ingot.core.store import Store

    root = find_root(Path.cwd())
    registry = Registry(
        root / "registry",
        lock_file=root / "ingot.lock",
        quarantine=root / "cache" / "quarantine",
        keys=default_keys_dir(),
        pins=default_pins_dir(),
    )
    store = Store(root / "cache", user_seal())
    try:
        return audit(registry, store, [log.origin for log in logs_in(root / "registry")], ticker)
    finally:
        ticker.end()
        with suppress(DiskFailed):
            # What was found damaged is read again by the next build.
            store.stats.save()


class _Ticker:
    """Says on a terminal how much has been read, once it takes long."""

    def __init__(self, *, quiet: bool) -> None:
        self._last = time.monotonic()
        self._on = not quiet and sys.stderr.isatty()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        if self._on and time.monotonic() - self._last >= _PATIENCE:
            self._last, self._shown = time.monotonic(), True
            sys.stderr.write(f"\rread {size_text(done)} of {size_text(total)}\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line back."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")


def to_json(result: Result) -> dict[str, Any]:
    """``doit audit --json``."""
    return {
        "format": 1,
        "ok": not result.problems,
        "entries": result.entries,
        "objects": result.objects,
        "bytes": result.bytes,
        "absent": result.absent,
        "metrics": result.metrics,
        "problems": [problem.to_dict() for problem in result.problems],
        "notes": [note.to_dict() for note in result.notes],
    }


def _show(screen: Screen, result: Result, seconds: float) -> None:
    for problem in result.problems:
        screen.line(f"{problem.code}: {problem.where}")
        screen.line(f"  {problem.detail}")
    for note in result.notes[:_SHOWN_NOTES]:
        screen.line(f"note {note.code}: {note.where}: {note.detail}")
    if len(result.notes) > _SHOWN_NOTES:
        screen.line(f"and {len(result.notes) - _SHOWN_NOTES} more notes (doit audit --json shows all)")
    if result.problems or result.notes:
        screen.line()
    screen.line(
        f"{result.entries} entries, {result.objects} artifacts read again ({size_text(result.bytes)}), "
        f"{result.absent} not present, {result.metrics} metrics derived again, in {duration_text(seconds)}"
    )
    if not result.problems:
        screen.line("no problem found")
        return
    count = len(result.problems)
    screen.line(f"{count} problem{'s' * (count != 1)} found; nothing was repaired")
    if any(problem.code == "artifact_damaged" for problem in result.problems):
        screen.line(
            "hint: the next doit moves a damaged artifact that it needs to cache/quarantine and builds it again"
        )
    if result.exit_code == 5:
        screen.line("hint: compare registry/ and ingot.lock with git or a backup: git log -p -- registry ingot.lock")
