"""``doit audit``: prove that logs and artifacts are what they were."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, value
from ingot.commands.screen import Screen, duration_text, plural, size_text
from ingot.errors import DiskFailed, UsageError

if TYPE_CHECKING:
    from ingot.core.audit import Audit as Result
    from ingot.core.reproduction import Reproduction

#: Seconds of silence before a person is told how far it is, and between two such lines.
_PATIENCE = 1.0
_SHOWN_NOTES = 20


class Audit(IngotCommand):
    """Check the logs, the artifacts, the metrics that follow from bytes and the lineage; repairs nothing."""

    name = "audit"
    doc_purpose = "check logs, signatures, pins, artifacts, metrics and lineage"
    doc_usage = "[--sample N%] [--json]"
    doc_description = (
        "Reads every artifact whole. Exit code 0, 4 (the store is damaged) or 5 (a registry check failed). With "
        "--sample, that share of the results in force, at least one, chosen at random, is built again too, and what "
        "came out is recorded (doit reproduce says more): 5 also where a kind that promises the same bytes gave others."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, 0)
    cmd_options = (JSON_OPTION, value("sample", "build this share of the results again, such as 5%%"))

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:  # noqa: ARG002 - the protocol
        """0, 4 or 5: the design's exit codes."""
        share = None if options["sample"] is None else _share(options["sample"])
        if share is not None:
            _require_specs()
        started = time.monotonic()
        result = _audit(_Ticker(quiet=bool(options["json"])))
        if not options["json"]:
            _show(screen, result, time.monotonic() - started)
            if share is not None and result.problems:
                screen.line("no result was sampled: what is wrong comes first")
        again = [] if share is None or result.problems else _sampled(screen, share, quiet=bool(options["json"]))
        if options["json"]:
            sampled = {} if share is None else {"reproduced": [it.to_dict() for it in again]}
            screen.json(to_json(result) | sampled)
        return 5 if any(it.broken for it in again) else result.exit_code


def _share(text: str) -> float:
    """``5%`` as a share; UsageError (E-USAGE)."""
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError("E-USAGE", f"--sample takes a share such as 5%, not {text!r}")
    return share


def _require_specs() -> None:
    """SpecError before the bytes are read: what the specs declare is what can be sampled."""
    from ingot.core.project import find_root
    from ingot.core.spec_cache import load_graphs, spec_files

    # The project itself is opened after the audit: that reads the index, and a damaged log must not stop it.
    root = find_root(Path.cwd())
    load_graphs(root, spec_files(root), root / "cache")


def _sampled(screen: Screen, share: float, *, quiet: bool) -> list[Reproduction]:
    """Build a random part of the results in force again. Nobody can prepare for which: no seed decides."""
    import math
    import random

    from ingot.commands.base import open_project
    from ingot.commands.reproduce import can_be_compared, reproducer, show

    project = open_project()
    if not quiet:
        screen.line()
    ready = [item for item in project.plan(project.nodes.values()).values() if can_be_compared(item)]
    chosen = random.SystemRandom().sample(ready, min(len(ready), math.ceil(share * len(ready))))
    found = []
    with reproducer(project) as again:
        for item in chosen:
            found.append(again(item))
            if not quiet:
                show(screen, found[-1])
    if not quiet:
        same = f"{sum(it.agrees for it in found)} of {plural(len(found), 'sampled result')} came out byte-equal"
        screen.line(same if found else "no result is here and up to date: none was sampled")
    return found


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
        "evicted": len(result.evicted),
        "metrics": result.metrics,
        "problems": [problem.to_dict() for problem in result.problems],
        "notes": [note.to_dict() for note in result.notes],
    }


def _show(screen: Screen, result: Result, seconds: float) -> None:
    for problem in result.problems:
        screen.line(f"{problem.code}: {problem.where}")
        screen.line(f"  {problem.detail}")
    # What was taken away on purpose is no news to anybody, and may be most of the log.
    notes = [note for note in result.notes if note.where not in result.evicted]
    for note in notes[:_SHOWN_NOTES]:
        screen.line(f"note {note.code}: {note.where}: {note.detail}")
    if len(notes) > _SHOWN_NOTES:
        screen.line(f"and {len(notes) - _SHOWN_NOTES} more notes (doit audit --json shows all)")
    if result.evicted:
        screen.line(
            f"note artifact_absent: {plural(len(result.evicted), 'artifact')} evicted by doit gc (--json lists them)"
        )
    if result.problems or result.notes:
        screen.line()
    screen.text(
        f"{result.entries} entries, {result.objects} artifacts read again ({size_text(result.bytes)}), "
        f"{result.absent} not present, {result.metrics} metrics derived again, in {duration_text(seconds)}"
    )
    if not result.problems:
        screen.line(
            "no problem found" if result.entries else "no problem found, for there is no log that could have one"
        )
        return
    count = len(result.problems)
    screen.line(f"{count} problem{'s' * (count != 1)} found; nothing was repaired")
    if any(problem.code == "artifact_damaged" for problem in result.problems):
        screen.line(
            "hint: the next doit moves a damaged artifact that it needs to cache/quarantine and builds it again"
        )
    if result.exit_code == 5:
        screen.line("hint: compare registry/ and ingot.lock with git or a backup: git log -p -- registry ingot.lock")
