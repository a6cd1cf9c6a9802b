"""The registry: append-only, tamper-evident logs of what was built and decided.

One folder a writer (``registry/<12 hex>/``), each a log of in-toto Statements under a signed checkpoint over
their Merkle root. Reading needs no key and imports no cryptography; an append is durable and signed when it
returns. Formats: ``docs/formats.md``; what it promises: ``docs/promises.md``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.disk import failure
from ingot.core.log import ORIGIN_PREFIX, START, Log, Prefix, decode_line, encode_line, logs_in
from ingot.core.log_places import Places
from ingot.core.log_writer import LogWriter
from ingot.core.pins import Pin, StatePins, read_lock, verify_log
from ingot.core.statement import time_of, type_of
from ingot.core.user_dirs import config_dir, state_dir
from ingot.errors import DiskFailed, RegistryDamaged

#: Inode, size, mtime and ctime (ns) of a log's file of lines: while it is the same, so are the lines.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, order=True)
class Ref:
    """The place of an entry: its log and its index there, from 0. Never changes."""

    origin: str
    index: int


@dataclass(frozen=True)
class Head:
    """What a log's checkpoint says (unverified): number of entries, and their root in hex."""

    size: int
    root: str


@dataclass(frozen=True)
class Entry:
    """One statement of a log, with its place."""

    origin: str
    index: int
    statement: dict[str, Any]

    @property
    def type(self) -> str:
        """``build``, ``selected``, ``gate-failed``, ``promote``, ``rollback``, ``accept``, ``origin``, …"""
        return type_of(self.statement)

    @property
    def time(self) -> str:
        """When it happened, by its writer's clock: RFC 3339, UTC."""
        return time_of(self.statement)

    @property
    def ref(self) -> Ref:
        """Its place."""
        return Ref(self.origin, self.index)


def default_keys_dir() -> Path:
    """Where signing keys lie: ``$XDG_CONFIG_HOME/ingot/keys``, by default below ``~/.config``."""
    return config_dir() / "keys"


def default_pins_dir() -> Path:
    """Where the newest checkpoints seen lie: ``$XDG_STATE_HOME/ingot/pins``, by default below ``~/.local/state``."""
    return state_dir() / "pins"


class Registry:
    """The logs of a project. Opening it touches nothing.

    ``root`` is ``registry/``, ``lock_file`` is ``ingot.lock`` beside it; ``quarantine`` takes unsigned lines;
    ``keys`` and ``pins`` are folders of the user. ``notices`` collects what a person should be told.
    """

    def __init__(self, root: Path, *, lock_file: Path, quarantine: Path, keys: Path, pins: Path) -> None:
        self._places = Places(root, lock_file, quarantine, keys, pins)
        self._writer = LogWriter(self._places)
        self._read: dict[str, Prefix] = {}
        self._proved: dict[str, Prefix] = {}

    @property
    def notices(self) -> list[str]:
        """Sentences about what happened on the way: a new log begun, a pin not written."""
        return self._writer.notices

    def heads(self) -> dict[str, Head]:
        """Each log's head, from the checkpoint files alone. RegistryDamaged when one is malformed."""
        found = {log.origin: log.checkpoint() for log in logs_in(self._places.root)}
        return {origin: Head(it.size, it.root.hex()) for origin, it in found.items() if it is not None}

    def append(self, statements: Sequence[dict[str, Any]]) -> list[Ref]:
        """Append statements in one commit, durable and signed on return; the first append begins a log.

        RefusedInput (E-LEAF-SIZE, E-JSON) before anything is written; RegistryDamaged and nothing signed
        when the log, its signature or a pin does not verify; DiskFailed, Busy.
        """
        lines = [encode_line(statement) for statement in statements]
        if not lines:
            return []
        origin, first = self._writer.append(lines)
        return [Ref(origin, first + number) for number in range(len(lines))]

    def verify_own(self) -> None:
        """Verify this user's logs now, as the next append would: RegistryDamaged; vanished logs become notices."""
        self._writer.verify()

    def store_evidence(self, data: bytes) -> str:
        """Keep bytes too large for an entry in this user's log folder; returns their SHA-256. Durable on return."""
        return self._writer.store_evidence(data)

    def read_evidence(self, digest: str) -> bytes:
        """Evidence by its SHA-256, from whichever log has it, compared with it (E-REG-EVIDENCE)."""
        for log in logs_in(self._places.root):
            data = log.evidence(digest)
            if data is not None:
                return data
        raise RegistryDamaged("E-REG-EVIDENCE", f"the registry does not hold evidence {digest[:12]}")

    def entries(self, origin: str | None = None, *, since: int = 0) -> Iterator[Entry]:
        """The signed entries of one log or of all, from index ``since`` of each on.

        Within a log the order is its own, whatever its writer's clock did; logs are merged by time (the latest
        so far in the log), then origin. RegistryDamaged when lines and checkpoint do not agree.
        """
        keyed = []
        for log in logs_in(self._places.root):
            if origin in (None, log.origin):
                latest = ""
                for entry in self._entries(log, since):
                    latest = max(latest, entry.time)
                    keyed.append(((latest, entry.origin, entry.index), entry))
        keyed.sort(key=lambda pair: pair[0])
        return iter([entry for _key, entry in keyed])

    def _entries(self, log: Log, since: int) -> list[Entry]:
        checkpoint = log.checkpoint()
        if checkpoint is None or checkpoint.size <= since:
            return []
        known = self._read.get(log.origin, START)
        start = known if known.frontier.size <= since else START
        lines: list[bytes] = []
        self._read[log.origin] = log.verified(checkpoint, start, lines)
        first = start.frontier.size
        return [_entry(log, first + number, line) for number, line in enumerate(lines) if first + number >= since]

    def stamp(self, origin: str) -> Stamp | None:
        """The stat of a log's lines; None when there is no such file."""
        path = self._log(origin).lines_path
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failure(error, path) from error
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def is_proved(self, origin: str) -> bool:
        """Whether this process has proved the beginning of a log already, and will not read it again for that."""
        return origin in self._proved

    def reread(self, origin: str) -> None:
        """Read all signed lines of a log again: RegistryDamaged unless they have the checkpoint's root."""
        log = self._log(origin)
        checkpoint = log.checkpoint()
        if checkpoint is not None:
            log.verified(checkpoint)

    def prove(self, origin: str) -> None:
        """Verify key, signature, lines and pins of a log that others may have written to (RegistryDamaged).

        A pin that cannot be read is passed over here; ``check`` reports it.
        """
        log = self._log(origin)
        pins: list[Pin] = []
        with suppress(RegistryDamaged, DiskFailed):
            pins += [pin for pin in read_lock(self._places.lock_file) if pin.origin == origin]
        with suppress(RegistryDamaged, DiskFailed):
            seen = StatePins(self._places.pins).read(origin)
            pins += [] if seen is None else [seen[0]]
        _checkpoint, self._proved[origin] = verify_log(log, log.vkey(), pins, self._proved.get(origin, START))

    def _log(self, origin: str) -> Log:
        return Log(self._places.root / origin.removeprefix(ORIGIN_PREFIX))

    def check(self) -> list[dict[str, str]]:
        """Everything that ``audit`` needs to know of the logs: problems as ``code``, ``where``, ``detail``.

        Reads every line and verifies signatures, roots, pins and evidence; an empty list means all is well.
        Codes in ``log_audit.NOTES`` are no damage.
        """
        from ingot.core.log_audit import audit

        return audit(self._places)


def _entry(log: Log, index: int, line: bytes) -> Entry:
    try:
        return Entry(log.origin, index, decode_line(line))
    except ValueError as error:
        raise RegistryDamaged(
            "E-REG-LINE", f"entry {index} of {log.origin} is malformed: {error}", hint="`doit audit` shows more"
        ) from error
