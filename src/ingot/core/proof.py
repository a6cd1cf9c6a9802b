"""Proofs about a log that stand alone: an entry is in it (``.tlog-proof``), and it grew from an earlier checkpoint.

Both are text that ends with the log's signed checkpoint, and verify with its public key and nothing else. That an entry
is in the log is C2SP's ``tlog-proof``, whose ``extra`` line holds the entry itself. That one checkpoint grew from
another is the body that C2SP's ``tlog-witness`` sends: ``old SIZE``, the hashes of RFC 6962, an empty line, the new
checkpoint. Formats: c2sp.org/tlog-proof, c2sp.org/tlog-witness; ``docs/formats.md``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core.log import Log, decode_line
from ingot.core.merkle import consistency_proof, inclusion_proof, leaf_hash, verify_consistency, verify_inclusion
from ingot.core.note import Checkpoint, Note, VerifierKey, decode_base64
from ingot.errors import RegistryDamaged

HEADER = "c2sp.org/tlog-proof@v1"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
#: A proof in a tree of 2⁶³ leaves has as many hashes.
_MOST_HASHES = 64


def _bad(what: str) -> RegistryDamaged:
    return RegistryDamaged("E-PROOF", what)


@dataclass(frozen=True)
class InclusionProof:
    """That an entry (its line) is at an index of the log whose signed checkpoint is ``note``."""

    entry: bytes
    index: int
    hashes: tuple[bytes, ...]
    note: bytes

    @classmethod
    def of(cls, log: Log, index: int) -> InclusionProof:
        """The proof of an entry of a log; RegistryDamaged where its lines are not those that are signed."""
        lines, note = signed_lines(log)
        leaves = [leaf_hash(line) for line in lines]
        return cls(lines[index], index, tuple(inclusion_proof(leaves, index)), note)

    def to_bytes(self) -> bytes:
        """The file."""
        head = [HEADER, f"extra {base64.b64encode(self.entry).decode()}", f"index {self.index}"]
        return _text(head, self.hashes) + self.note

    @classmethod
    def parse(cls, data: bytes) -> InclusionProof:
        """Read a file strictly, each value in its one spelling; RegistryDamaged (E-PROOF)."""
        head, note = _halves(data)
        if head[0] != HEADER or len(head) < 3:
            raise _bad(f"the file is no proof of the form {HEADER}")
        if not head[1].startswith("extra "):
            raise _bad("the proof does not carry its entry (the line `extra`)")
        entry = _decoded(head[1].removeprefix("extra "))
        return cls(entry, _number(head[2], "index"), _hashes(head[3:]), note)

    def verify(self, key: VerifierKey) -> dict[str, Any]:
        """The statement that the log of this key holds; RegistryDamaged: E-REG-SIGNATURE, E-REG-NOTE, E-PROOF."""
        checkpoint = signed_checkpoint(self.note, key)
        if not verify_inclusion(self.index, checkpoint.size, leaf_hash(self.entry), self.hashes, checkpoint.root):
            raise _bad(f"the proof does not lead to the root that {key.name} signed: the entry is not in that log")
        try:
            return decode_line(self.entry)
        except ValueError as error:
            raise _bad(f"what is in the log is no entry of ingot: {error}") from error


@dataclass(frozen=True)
class ConsistencyProof:
    """That the log whose signed checkpoint is ``note`` begins with the ``old`` entries of an earlier checkpoint."""

    old: int
    hashes: tuple[bytes, ...]
    note: bytes

    @classmethod
    def of(cls, log: Log, old: int) -> ConsistencyProof:
        """The proof from a size on; RegistryDamaged where the log is shorter or its lines are not those signed."""
        lines, note = signed_lines(log)
        if not 0 < old <= len(lines):
            raise _bad(f"{log.origin} has {len(lines)} entries: it did not grow from one of {old}")
        return cls(old, tuple(consistency_proof([leaf_hash(line) for line in lines], old)), note)

    def to_bytes(self) -> bytes:
        """The file."""
        return _text([f"old {self.old}"], self.hashes) + self.note

    @classmethod
    def parse(cls, data: bytes) -> ConsistencyProof:
        """Read a file strictly; RegistryDamaged (E-PROOF)."""
        head, note = _halves(data)
        return cls(_number(head[0], "old"), _hashes(head[1:]), note)

    def verify(self, key: VerifierKey, earlier: bytes) -> tuple[Checkpoint, Checkpoint]:
        """Both checkpoints, the earlier one first, signed by this key and one the beginning of the other.

        RegistryDamaged: E-REG-SIGNATURE, E-REG-NOTE, E-PROOF.
        """
        before, after = signed_checkpoint(earlier, key), signed_checkpoint(self.note, key)
        if before.size != self.old:
            raise _bad(f"the proof is from {self.old} entries on, and the earlier checkpoint has {before.size}")
        if not verify_consistency((before.size, after.size), (before.root, after.root), self.hashes):
            raise _bad(f"the log did not grow from the earlier checkpoint: {key.name} signed two histories")
        return before, after


def signed_checkpoint(data: bytes, key: VerifierKey) -> Checkpoint:
    """What a signed checkpoint says; RegistryDamaged unless this very key signed it as its own log's."""
    note = Note.parse(data)
    note.verify(key)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != key.name:
        raise RegistryDamaged("E-REG-NOTE", f"the checkpoint is of {checkpoint.origin}, and the key of {key.name}")
    return checkpoint


def is_inclusion(data: bytes) -> bool:
    """Whether a file says that it is a ``.tlog-proof``."""
    return data.startswith(HEADER.encode() + b"\n")


def signed_lines(log: Log) -> tuple[list[bytes], bytes]:
    """The lines of a log that its checkpoint signs, and the checkpoint as it is signed, verified with the log's key."""
    note = log.signed_note()
    checkpoint = signed_checkpoint(note, log.vkey())
    lines: list[bytes] = []
    log.verified(checkpoint, into=lines)
    return lines, note


def _text(head: Sequence[str], hashes: Sequence[bytes]) -> bytes:
    return "".join(f"{line}\n" for line in [*head, *(base64.b64encode(it).decode() for it in hashes), ""]).encode()


def _halves(data: bytes) -> tuple[list[str], bytes]:
    """The lines before the first empty one, and the checkpoint after it, verbatim."""
    head, separator, note = data.partition(b"\n\n")
    if not separator:
        raise _bad("a proof ends with a signed checkpoint after an empty line")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise _bad("a proof is ASCII down to its checkpoint") from error
    return lines, note


def _number(line: str, word: str) -> int:
    digits = line.removeprefix(f"{word} ")
    if not line.startswith(f"{word} ") or not _NUMBER.fullmatch(digits):
        raise _bad(f"a line `{word} NUMBER` is expected, not {line[:80]!r}")
    return int(digits)


def _hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    if len(lines) > _MOST_HASHES:
        raise _bad(f"a proof has at most {_MOST_HASHES} hashes, not {len(lines)}")
    found = tuple(_decoded(line) for line in lines)
    if any(len(it) != 32 for it in found):
        raise _bad("a hash of a proof is 32 bytes")
    return found


def _decoded(text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError as error:
        raise _bad(str(error)) from error
