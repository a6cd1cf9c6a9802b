"""What ``audit`` finds out about the logs: signatures, lines, roots, pins, evidence.

It trusts no cache and does not stop at the first problem. One problem is a dict of ``code``, ``where`` and
``detail``:

- ``checkpoint_malformed``, ``key_malformed``, ``key_changed``, ``signature_wrong``: the signed note or its key
- ``line_malformed``: a signed line is not canonical strict JSON of an in-toto Statement
- ``log_truncated``, ``root_mismatch``, ``log_forked``, ``log_missing``: the entries are not those signed or pinned
- ``lock_malformed``, ``head_unreadable``, ``pin_malformed``: a pin that could not be compared
- ``evidence_damaged``, ``evidence_missing``; ``unreadable``: the system could not read a file
- notes, no damage: ``unsigned_tail`` (a writer died; the next build moves the lines aside or completes its
  commit), ``log_behind`` (this user has seen a newer state of the log: a branch, a clone or a backup)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ingot.core.digest import is_digest, sha256_bytes
from ingot.core.log import START, Log, Prefix, decode_line, is_canonical, logs_in, read_small
from ingot.core.log_places import Places
from ingot.core.note import Checkpoint, VerifierKey
from ingot.core.pins import Pin, StatePins, lock_at_head, verified_lock
from ingot.core.statement import evidence_of
from ingot.errors import DiskFailed, RegistryDamaged

#: Codes that say something about the state of the logs but are no damage.
NOTES = frozenset({"unsigned_tail", "log_behind"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """A pin and where it comes from, in words; ``local`` for the user's state folder."""

    pin: Pin
    words: str
    local: bool = False


class Findings:
    """The problems found so far."""

    def __init__(self) -> None:
        self.problems: list[dict[str, str]] = []

    def add(self, code: str, where: str, detail: str) -> None:
        """Note one problem."""
        self.problems.append({"code": code, "where": where, "detail": detail})

    def attempt(self, code: str, where: str, action: Callable[[], _T]) -> _T | None:
        """The result of ``action``; None, and a problem, when it raises."""
        try:
            return action()
        except RegistryDamaged as error:
            self.add(code, where, "; ".join([error.what, *error.facts]))
        except DiskFailed as error:
            self.add("unreadable", where, error.what)
        return None


def audit(places: Places) -> list[dict[str, str]]:
    """All problems of the logs in ``places``."""
    found = Findings()
    state = StatePins(places.pins)
    name = places.lock_file.name
    in_tree = found.attempt("lock_malformed", name, lambda: verified_lock(places.lock_file)) or []
    at_head = found.attempt("head_unreadable", f"{name} at HEAD", lambda: lock_at_head(places.lock_file)) or []
    pinned = [Source(pin, name) for pin in in_tree] + [Source(pin, f"{name} as committed") for pin in at_head]
    logs = found.attempt("unreadable", places.root.name, lambda: logs_in(places.root)) or []
    for log in logs:
        mine = [source for source in pinned if source.pin.origin == log.origin]
        seen = found.attempt("pin_malformed", log.origin, partial(state.verified, log.origin))
        if seen is not None:
            mine.append(Source(seen[0], "the newest checkpoint seen by this user", local=True))
        _LogAudit(log, mine, found).run()
    present = {log.origin for log in logs}
    for origin in sorted({source.pin.origin for source in pinned} - present):
        words = sorted({source.words for source in pinned if source.pin.origin == origin})
        found.add("log_missing", origin, f"pinned by {' and '.join(words)}, but its folder is gone")
    return found.problems


class _LogAudit:
    """The audit of one log against its pins."""

    def __init__(self, log: Log, pinned: list[Source], found: Findings) -> None:
        self.log, self.pinned, self.found = log, pinned, found
        self.place = f"{log.folder.parent.name}/{log.folder.name}"

    def run(self) -> None:
        """Look at everything."""
        log, found = self.log, self.found
        if self._is_unbegun():
            return
        key = found.attempt("key_malformed", f"{self.place}/log.vkey", log.vkey) if log.folder.is_dir() else None
        before = len(found.problems)
        checkpoint = found.attempt("checkpoint_malformed", f"{self.place}/checkpoint", log.checkpoint)
        if len(found.problems) > before:
            return
        if key is not None:
            self._check_key(key, checkpoint)
        found.attempt("unreadable", f"{self.place}/log.jsonl", lambda: self._check_lines(checkpoint))
        found.attempt("unreadable", f"{self.place}/evidence", self._check_evidence_files)

    def _is_unbegun(self) -> bool:
        """Whether there is but the folder: its writer died before it put its key there, and nobody has seen the log."""
        log = self.log
        there = any(os.path.lexists(path) for path in (log.vkey_path, log.checkpoint_path, log.lines_path))
        return log.folder.is_dir() and not there and not self.pinned

    def _check_key(self, key: VerifierKey, checkpoint: Checkpoint | None) -> None:
        for source in self.pinned:
            if source.pin.vkey != str(key):
                detail = f"the key is not the one in {source.words}: {source.pin.vkey}"
                self.found.add("key_changed", f"{self.place}/log.vkey", detail)
        note = self.log.note()
        if checkpoint is not None and note is not None:
            self.found.attempt("signature_wrong", f"{self.place}/checkpoint", lambda: note.verify(key))

    def _check_lines(self, checkpoint: Checkpoint | None) -> None:
        """Every line up to the checkpoint; the root there and at every pin; then what lies beyond."""
        size = 0 if checkpoint is None else checkpoint.size
        roots, prefix = self._walk(size)
        have = prefix.frontier.size
        where = f"{self.place}/log.jsonl"
        if have < size:
            self.found.add("log_truncated", where, f"{size} entries are signed, {have} whole lines are there")
        elif checkpoint is not None and prefix.frontier.root() != checkpoint.root:
            intact = [s.pin.size for s in self.pinned if roots.get(s.pin.size) == s.pin.root]
            upto = f"; the first {max(intact)} agree with a pin" if intact else ""
            self.found.add("root_mismatch", where, f"the {size} lines are not those that the checkpoint signs{upto}")
        for source in self.pinned:
            if source.pin.size > size:
                self._check_longer(source, size, prefix)
            elif source.pin.size <= have and roots[source.pin.size] != source.pin.root:
                detail = (
                    f"the first {source.pin.size} entries are not those of {source.words}: "
                    f"root {roots[source.pin.size].hex()} now, {source.pin.root.hex()} pinned"
                )
                self.found.add("log_forked", where, detail)
        rest = self.log.length() - prefix.offset
        if have == size and rest > 0:
            self.found.add("unsigned_tail", where, f"{rest} bytes after entry {size}: not entries, never signed")

    def _walk(self, size: int) -> tuple[dict[int, bytes], Prefix]:
        """Read ``size`` lines, checking each; the roots at the sizes of the pins, and the prefix read."""
        wanted = {source.pin.size for source in self.pinned}
        roots, prefix = {}, START
        lines = self.log.scan() if size else iter(())
        for index, line in enumerate(lines):
            self._check_line(index, line)
            prefix = prefix.extended([line])
            if index + 1 in wanted:
                roots[index + 1] = prefix.frontier.root()
            if index + 1 == size:
                break
        return roots, prefix

    def _check_line(self, index: int, line: bytes) -> None:
        where = f"{self.place}/log.jsonl:{index + 1}"
        try:
            statement = decode_line(line)
        except ValueError as error:
            self.found.add("line_malformed", where, str(error))
            return
        if not is_canonical(line):
            self.found.add("line_malformed", where, "not in canonical form (RFC 8785)")
        for evidence in evidence_of(statement):
            if not self._has_evidence(evidence):
                self.found.add("evidence_missing", where, f"the entry names evidence {evidence}, which is not there")

    def _has_evidence(self, digest: str) -> bool:
        return is_digest(digest) and self.log.evidence_path(digest).exists()

    def _check_evidence_files(self) -> None:
        folder = self.log.folder / "evidence"
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            data = read_small(folder / name)
            if data is not None and is_digest(name) and sha256_bytes(data) != name:
                self.found.add("evidence_damaged", f"{self.place}/evidence/{name}", "its content has another SHA-256")

    def _check_longer(self, source: Source, size: int, prefix: Prefix) -> None:
        """A pin of more entries than the checkpoint signs: cut off, behind, or a commit that was not finished."""
        if not source.local:
            detail = f"the log was truncated: {source.words} has {source.pin.size} entries, now {size} are signed"
            self.found.add("log_truncated", self.place, detail)
        elif not self._completes(source.pin, prefix):
            detail = f"this user has seen {source.pin.size} entries, here are {size}: nothing is appended to this log"
            self.found.add("log_behind", self.place, detail)

    def _completes(self, pin: Pin, prefix: Prefix) -> bool:
        try:
            return self.log.read(pin.size, prefix).frontier.root() == pin.root
        except RegistryDamaged:
            return False
