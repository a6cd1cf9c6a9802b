"""Appending to a log: the one place that signs.

Commit order, under the locks: lines appended and synced; the pin in the user's state folder; the checkpoint
replaced and its folder synced (*the commit*); ``ingot.lock`` (derived). Before it signs, the writer has read
every line of the log and compared their root with the signed one, and with the pins: it never signs on top of
damage, and never signs two different histories of one origin.

A log that is older than its pin (branch switch, restored backup, second clone) cannot be appended to without
forking it, so another origin is begun. The exception is a log whose lines are exactly those that the pin
names: its writer died between pin and commit, and the commit is completed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ingot.core import disk
from ingot.core.digest import sha256_bytes
from ingot.core.log import START, Log, Prefix, encode_line, logs_in, read_small
from ingot.core.log_places import Places, held, read_key, write_key
from ingot.core.log_tail import quarantine_tail
from ingot.core.note import Checkpoint, Note, SigningKey, VerifierKey
from ingot.core.pins import Pin, StatePins, encode_lock, read_lock, verify_log
from ingot.core.statement import origin_statement
from ingot.errors import DiskFailed, RegistryDamaged

_T = TypeVar("_T")


@dataclass(frozen=True)
class Opened:
    """A log that may be appended to: verified up to ``prefix``, which ``note`` (its checkpoint's bytes) signs."""

    log: Log
    key: SigningKey
    verifier: VerifierKey
    prefix: Prefix
    note: bytes | None


class LogWriter:
    """Appends to this user's log in this project; remembers between appends what it has verified.

    Threads may share it: the file locks exclude them from each other as they do processes.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.notices: list[str] = []
        self._pins = StatePins(places.pins)
        self._opened: dict[str, Opened] = {}
        self._seen: dict[str, tuple[bytes, Pin]] = {}

    def append(self, lines: list[bytes]) -> tuple[str, int]:
        """Append lines in one commit; returns the origin and the index of the first. Durable on return."""
        with self._locked():
            origin, first = self._use(lambda own: self._commit(own, lines))
            self._update_lock(origin)
            return origin, first

    def verify(self) -> None:
        """Open this user's logs as an append would, so that damage is found before hours of work and not after.

        RegistryDamaged; a pinned log whose folder is gone becomes a notice, since a build may go on without it.
        """
        there = {log.origin for log in logs_in(self.places.root)}
        for pin in self._lock_pins():
            if pin.origin not in there:
                folder = self.places.root.name + "/" + pin.origin.rpartition("/")[2]
                self._notice(
                    f"ingot.lock pins {pin.origin} with {pin.size} entries, and {folder} is gone: "
                    "restore it from git or a backup; without it nothing of what it recorded is known"
                )
        if there:
            with self._locked():
                for log, key in self._ours():
                    with self._origin_locked(log):
                        self._open(log, key)

    def store_evidence(self, data: bytes) -> str:
        """Keep bytes too large for a line beside the log; returns their SHA-256. Durable on return."""
        digest = sha256_bytes(data)

        def keep(own: Opened) -> str:
            path = own.log.evidence_path(digest)
            disk.make_dirs_durable(path.parent)
            if own.log.evidence(digest) is None:
                disk.write_file_atomic(path, data, 0o444)
            else:
                disk.fsync_dir(path.parent)  # whoever put it there may have been killed before its name was durable
            return digest

        with self._locked():
            return self._use(keep)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Beside the quarantine, so in cache/: a lock file in registry/ would be one more file for git to see.
        with held(self.places.quarantine.parent / "registry.lock"):
            yield

    @contextmanager
    def _origin_locked(self, log: Log) -> Iterator[None]:
        """Keep other clones of this user away from an origin: its pin is read, and set, under this lock."""
        disk.make_dirs_durable(self.places.pins, 0o700)
        with held(self.places.pins / f"{log.folder.name}.lock"):
            yield

    # --- which log -------------------------------------------------------------------------------------------

    def _use(self, action: Callable[[Opened], _T]) -> _T:
        """Run ``action`` on the first log of ours that is not behind its pin; begin one when there is none."""
        behind = []
        for log, key in self._ours():
            with self._origin_locked(log):
                own = self._open(log, key)
                if own is not None:
                    return action(own)
            behind.append(log.origin)
        others = [log.origin for log in logs_in(self.places.root)]
        log, key = self._begin()
        if not behind and others:
            self.notices.append(
                f"{', '.join(others)}: no signing key of this user in {self.places.keys} (a new clone, or the key was "
                f"lost); new entries go to a new log, {log.origin}"
            )
        if behind:
            self.notices.append(
                f"{', '.join(behind)}: the log in this work tree is older than the newest seen of it "
                f"(another branch, another clone or a restored backup); new entries go to a new log, {log.origin}"
            )
        with self._origin_locked(log):
            own = self._open(log, key)
            assert own is not None, "a log that was just begun has no pin"
            return action(own)

    def _ours(self) -> Iterator[tuple[Log, SigningKey]]:
        """The logs in the project whose signing key this user has, sorted by name."""
        for log in logs_in(self.places.root):
            known = self._opened.get(log.origin)
            key = known.key if known is not None else read_key(self.places.keys, log)
            if key is not None:
                yield log, key

    def _begin(self) -> tuple[Log, SigningKey]:
        """A new origin: its key, then its folder. Its first entry comes with the first commit."""
        log = Log(self.places.root / secrets.token_hex(6))
        key = SigningKey.generate(log.origin)
        write_key(self.places, log, key)
        disk.make_dirs_durable(log.folder)
        return log, key

    # --- opening ---------------------------------------------------------------------------------------------

    def _open(self, log: Log, key: SigningKey) -> Opened | None:
        """The log, verified against its checkpoint and pins; None when it is behind a pin."""
        known = self._opened.get(log.origin)
        pinned = self._pins.read(log.origin)
        if known is not None and self._unchanged(known, pinned):
            return known
        verifier = key.verifier() if known is None else known.verifier
        for folder in (log.folder, log.folder / "evidence"):
            disk.sweep_asides(folder)
        if read_small(log.vkey_path) is None:
            # Whoever began the log may have been killed before the name of its folder was durable.
            disk.make_dirs_durable(log.folder)
            disk.write_file_atomic(log.vkey_path, f"{verifier}\n".encode())
        pins = [pin for pin in self._lock_pins() if pin.origin == log.origin]
        pins += [] if pinned is None else [pinned[0]]
        start = START if known is None or log.length() < known.prefix.offset else known.prefix
        checkpoint, prefix = verify_log(log, verifier, pins, start)
        size = 0 if checkpoint is None else checkpoint.size
        note = read_small(log.checkpoint_path)
        if pinned is not None and pinned[0].size > size:
            completed = self._completed(log, verifier, prefix, pinned)
            if completed is None:
                return None
            prefix, note = completed
        if any(pin.size > prefix.frontier.size for pin in pins):
            return None
        opened = Opened(log, key, verifier, prefix, note)
        self._opened[log.origin] = opened
        return opened

    def _unchanged(self, known: Opened, pinned: tuple[Pin, bytes] | None) -> bool:
        """Whether the log is as our last append left it: then its lines need not be read again.

        Trusting the tree in memory is safe: it was computed from lines that were verified, so a signature over
        it and new lines never covers what somebody has changed in the file meanwhile.
        """
        return (
            known.note is not None
            and known.log.length() == known.prefix.offset
            and pinned is not None
            and pinned[1] == known.note == read_small(known.log.checkpoint_path)
        )

    def _completed(
        self, log: Log, verifier: VerifierKey, prefix: Prefix, pinned: tuple[Pin, bytes]
    ) -> tuple[Prefix, bytes] | None:
        """Finish a commit whose pin was written and whose checkpoint was not; None when the lines are others."""
        pin, note = pinned
        try:
            longer = log.read(pin.size, prefix)
        except RegistryDamaged:
            return None
        if longer.frontier.root() != pin.root:
            return None
        Note.parse(note).verify(verifier)
        disk.write_file_atomic(log.checkpoint_path, note)
        return longer, note

    # --- committing ------------------------------------------------------------------------------------------

    def _commit(self, own: Opened, lines: list[bytes]) -> tuple[str, int]:
        log, prefix = own.log, own.prefix
        if prefix.frontier.size == 0:
            seen = [{"origin": p.origin, "size": p.size, "root": p.root.hex()} for p in self._see_others(log.origin)]
            lines = [encode_line(origin_statement(log.origin, str(own.verifier), seen)), *lines]
        self._opened.pop(log.origin, None)
        quarantine_tail(log, prefix.offset, self.places.quarantine)
        after = prefix.extended(lines)
        disk.append_durable(log.lines_path, b"".join(line + b"\n" for line in lines), prefix.offset)
        note = own.key.sign(Checkpoint(log.origin, after.frontier.size, after.frontier.root()).text())
        self._pins.write(log.origin, note, str(own.verifier))
        disk.write_file_atomic(log.checkpoint_path, note)
        self._opened[log.origin] = Opened(log, own.key, own.verifier, after, note)
        return log.origin, after.frontier.size - len(lines) + (prefix.frontier.size == 0)

    def _see_others(self, own: str) -> list[Pin]:
        """Verify the other logs, remember their checkpoints, and return them; a damaged one becomes a notice."""
        pins = []
        for log in logs_in(self.places.root):
            note = read_small(log.checkpoint_path)
            if log.origin == own or note is None:
                continue
            known = self._seen.get(log.origin)
            if known is None or known[0] != note:
                try:
                    known = (note, self._see(log, note))
                except (RegistryDamaged, DiskFailed) as error:
                    self._notice(f"{log.origin} was not pinned: {error.what} (doit audit shows more)")
                    continue
                self._seen[log.origin] = known
            pins.append(known[1])
        return pins

    def _see(self, log: Log, note: bytes) -> Pin:
        with self._origin_locked(log):
            pinned = self._pins.read(log.origin)
            pins = [pin for pin in self._lock_pins() if pin.origin == log.origin]
            pins += [] if pinned is None else [pinned[0]]
            verifier = log.vkey()
            checkpoint, _prefix = verify_log(log, verifier, pins, START)
            assert checkpoint is not None, "the caller has read its note"
            if pinned is None or pinned[0].size < checkpoint.size:
                self._pins.write(log.origin, note, str(verifier))
        return Pin(log.origin, checkpoint.size, checkpoint.root, str(verifier))

    # --- ingot.lock ------------------------------------------------------------------------------------------

    def _lock_pins(self) -> list[Pin]:
        try:
            return read_lock(self.places.lock_file)
        except RegistryDamaged as error:
            self._notice(error.what)
            return []

    def _update_lock(self, origin: str) -> None:
        """Bring ``ingot.lock`` up to date; a failure is a notice, since the entries are committed already."""
        opened = self._opened[origin]
        assert opened.note is not None, "it was committed"
        try:
            old = read_lock(self.places.lock_file)
            checkpoint = Checkpoint.parse(Note.parse(opened.note).text)
            new = [Pin(origin, checkpoint.size, checkpoint.root, str(opened.verifier)), *self._see_others(origin)]
            # A pin is replaced only by one of a log that was verified against it, never by a smaller one.
            sizes = {pin.origin: pin.size for pin in new}
            kept = [pin for pin in old if pin.size > sizes.get(pin.origin, 0)]
            data = encode_lock([*kept, *new])
            if data != read_small(self.places.lock_file):
                disk.sweep_aside(self.places.lock_file)
                disk.write_file_atomic(self.places.lock_file, data)
        except (RegistryDamaged, DiskFailed) as error:
            self._notice(f"ingot.lock was not updated: {error.what}")

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)
