"""Pins: checkpoints remembered outside the logs, so that a log cannot be cut, changed or replaced unseen.

Two places: ``ingot.lock`` in the project, committed to git (the newest commit of each log, all logs seen),
and one file an origin in the user's state folder (the newest checkpoint seen, by any clone of that user).
A pin in the state folder is written *before* the checkpoint that it names is put in place: from then on the
log has exactly one possible next state, and a writer that dies between the two is completed, not forked.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ingot.core import disk
from ingot.core.digest import read_json
from ingot.core.log import ORIGIN_PREFIX, START, Log, Prefix, read_small
from ingot.core.note import Checkpoint, Note, VerifierKey, decode_base64
from ingot.errors import RegistryDamaged


@dataclass(frozen=True, order=True)
class Pin:
    """A log that was seen: origin, number of entries, root (32 bytes), and its key as a vkey."""

    origin: str
    size: int
    root: bytes
    vkey: str


class StatePins:
    """The pins in the user's state folder: ``<folder>/<12 hex>.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, origin: str) -> Path:
        """The file of an origin's pin."""
        return self.folder / f"{origin.removeprefix(ORIGIN_PREFIX)}.json"

    def read(self, origin: str) -> tuple[Pin, bytes] | None:
        """The pin and the signed note that it came from; None when the log was never seen (E-REG-PIN)."""
        data = read_small(self.path(origin))
        return None if data is None else self._decoded(origin, data)

    def _decoded(self, origin: str, data: bytes) -> tuple[Pin, bytes]:
        try:
            value = read_json(data)
            if not isinstance(value, dict) or value.get("format") != 1:
                raise ValueError("another format")
            note, vkey = str(value["note"]).encode(), str(value["vkey"])
            checkpoint = Checkpoint.parse(Note.parse(note).text)
        except (ValueError, KeyError, RegistryDamaged) as error:
            raise RegistryDamaged(
                "E-REG-PIN", f"the pin of {origin} is malformed: {error}", facts=[str(self.path(origin))]
            ) from error
        return Pin(checkpoint.origin, checkpoint.size, checkpoint.root, vkey), note

    def verified(self, origin: str) -> tuple[Pin, bytes] | None:
        """As ``read``; E-REG-PIN also unless every byte is as ``write`` leaves it and the note is signed."""
        # Read once: a writer may replace it at any moment.
        data = read_small(self.path(origin))
        if data is None:
            return None
        pin, note = self._decoded(origin, data)
        if data != _encode_pin(note, pin.vkey) or pin.origin != origin:
            raise RegistryDamaged("E-REG-PIN", f"the pin of {origin} was changed", facts=[str(self.path(origin))])
        Note.parse(note).verify(VerifierKey.parse(pin.vkey))
        return pin, note

    def write(self, origin: str, note: bytes, vkey: str) -> None:
        """Remember a signed checkpoint, durably; call it under the origin's lock, which lies in the same folder."""
        disk.sweep_aside(self.path(origin))
        disk.write_file_atomic(self.path(origin), _encode_pin(note, vkey))


def _encode_pin(note: bytes, vkey: str) -> bytes:
    value = {"format": 1, "note": note.decode(), "vkey": vkey}
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def verify_log(log: Log, verifier: VerifierKey, pins: list[Pin], start: Prefix) -> tuple[Checkpoint | None, Prefix]:
    """Check a log's key, signature, lines, root, and that each pin of at most its size is a prefix of it.

    ``start``: a prefix of it that was verified before, used when the log is not shorter. RegistryDamaged:
    E-REG-KEY, E-REG-SIGNATURE, E-REG-NOTE, E-REG-TRUNCATED, E-REG-ROOT, E-REG-FORK.
    """
    if log.vkey() != verifier or any(pin.vkey != str(verifier) for pin in pins):
        raise RegistryDamaged("E-REG-KEY", f"the public key of {log.origin} is not the one that was seen before")
    note, checkpoint = log.note(), log.checkpoint()
    if note is None or checkpoint is None:
        return None, START
    note.verify(verifier)
    prefix, fork = start if start.frontier.size <= checkpoint.size else START, None
    for pin in sorted(pins, key=lambda pin: pin.size):
        if prefix.frontier.size <= pin.size <= checkpoint.size:
            prefix = log.read(pin.size, prefix)
            if prefix.frontier.root() != pin.root and fork is None:
                fork = RegistryDamaged(
                    "E-REG-FORK",
                    f"the first {pin.size} entries of {log.origin} are not those that were seen before",
                    facts=[f"root seen: {pin.root.hex()}", f"root now:  {prefix.frontier.root().hex()}"],
                    hint="the log was rewritten, or its key was used in two places; `doit audit` shows both",
                )
    # Lines that are not even those of their own checkpoint are damage; only signed ones are another history.
    whole = log.verified(checkpoint, prefix)
    if fork is not None:
        raise fork
    return checkpoint, whole


def encode_lock(pins: Iterable[Pin]) -> bytes:
    """``ingot.lock``: JSON with one pin a line, sorted.

    Each such line ends in a comma and the last line is fixed, so that git's ``merge=union`` of two of them is
    again well-formed.
    """
    lines = [
        json.dumps(pin.origin)
        + ": "
        + json.dumps({"root": base64.b64encode(pin.root).decode(), "size": pin.size, "vkey": pin.vkey})
        for pin in sorted(set(pins))
    ]
    return "\n".join(['{"format": 1, "checkpoints": {', *(f"{line}," for line in lines), '"": null}}', ""]).encode()


def decode_lock(data: bytes) -> list[Pin]:
    """The pins of an ``ingot.lock``, sorted; after a union merge one origin may have several (E-REG-LOCK)."""
    pins: list[Pin] = []

    def pairs(items: list[tuple[str, object]]) -> object:
        if items and items[-1] == ("", None):
            pins.extend(_pin(origin, value) for origin, value in items[:-1])
            return "checkpoints"
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("duplicate key")
        return result

    try:
        value = json.loads(data, object_pairs_hook=pairs)
        if value != {"format": 1, "checkpoints": "checkpoints"}:
            raise ValueError("not the fields format 1 and checkpoints")
    except (ValueError, RecursionError, RegistryDamaged) as error:
        raise RegistryDamaged(
            "E-REG-LOCK",
            f"ingot.lock is malformed: {error}",
            hint="take the version of either side of the merge: the next build completes it",
        ) from error
    return sorted(set(pins))


def _pin(origin: str, value: object) -> Pin:
    if not isinstance(value, dict) or set(value) != {"root", "size", "vkey"}:
        raise ValueError(f"not a checkpoint: {origin}")
    root, size, vkey = decode_base64(str(value["root"])), value["size"], VerifierKey.parse(str(value["vkey"]))
    if type(size) is not int or size < 1 or len(root) != 32 or vkey.name != origin:
        raise ValueError(f"not a checkpoint: {origin}")
    return Pin(origin, size, root, str(vkey))


def verified_lock(path: Path) -> list[Pin]:
    """As ``read_lock``; E-REG-LOCK also unless each line is as ``encode_lock`` writes it, in any order and number.

    A union merge of two lock files passes; a file that says the same with other bytes was edited.
    """
    # Read once: a writer may replace it at any moment.
    data = read_small(path)
    if data is None:
        return []
    pins = decode_lock(data)
    if data[-1:] != b"\n" or _lines(data) != _lines(encode_lock(pins)):
        raise RegistryDamaged("E-REG-LOCK", "ingot.lock says the same in other characters than ingot writes")
    return pins


def _lines(data: bytes) -> set[bytes]:
    return set(data.removesuffix(b"\n").split(b"\n"))


def read_lock(path: Path) -> list[Pin]:
    """The pins of the lock file in the work tree; none when there is no such file."""
    data = read_small(path)
    return [] if data is None else decode_lock(data)


def lock_at_head(path: Path) -> list[Pin]:
    """The pins of the lock file as committed at HEAD; none outside git or before the first commit of it.

    RegistryDamaged (E-REG-HEAD) when there is a repository that git cannot read: then nothing was checked.
    """
    folder = path.parent
    if not any((parent / ".git").exists() for parent in (folder.resolve(), *folder.resolve().parents)):
        return []
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if head.returncode == 1:
        return []
    listed = _git(folder, "ls-tree", "-z", "--name-only", "HEAD", "--", f"./{path.name}")
    if head.returncode or listed.returncode:
        problem = (head.stderr or listed.stderr).decode("utf-8", "replace").strip()
        raise RegistryDamaged("E-REG-HEAD", f"git cannot read the commit at HEAD: {problem[:200]}")
    if not listed.stdout:
        return []
    shown = _git(folder, "show", f"HEAD:./{path.name}")
    if shown.returncode:
        raise RegistryDamaged("E-REG-HEAD", f"git cannot show {path.name} as committed at HEAD")
    return decode_lock(shown.stdout)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RegistryDamaged("E-REG-HEAD", f"git cannot be run: {error}") from error
