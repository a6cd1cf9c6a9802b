"""One log on disk: a folder with ``log.jsonl``, ``checkpoint``, ``log.vkey`` and ``evidence/``. Reading only.

An entry is a line of ``log.jsonl`` below the size that the checkpoint signs. Lines beyond it are no entries:
a writer died before its commit. Whoever reads entries reads all lines before them and compares their root
with the checkpoint's, so a damaged log is never used; only ``audit`` also verifies signatures and pins.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core.digest import canonical_json, is_digest, read_json, sha256_bytes
from ingot.core.disk import failure
from ingot.core.files import open_regular
from ingot.core.merkle import Frontier, leaf_hash
from ingot.core.note import Checkpoint, Note, VerifierKey
from ingot.core.statement import MAX_LINE, STATEMENT
from ingot.errors import RefusedInput, RegistryDamaged

ORIGIN_PREFIX = "ingot.local/"
_NAME = re.compile(r"[0-9a-f]{12}")


def encode_line(statement: object) -> bytes:
    """A statement as a line, without its line feed; RefusedInput (E-LEAF-SIZE, E-JSON) when it has no such form."""
    line = canonical_json(statement)
    if len(line) > MAX_LINE:
        raise RefusedInput(
            "E-LEAF-SIZE",
            f"an entry has {len(line)} bytes, more than {MAX_LINE}",
            hint="large evidence belongs in a file of the artifact, or in the registry's evidence folder",
        )
    return line


def decode_line(line: bytes) -> dict[str, Any]:
    """A line as a statement; ValueError when it is not strict JSON, not canonical or not an in-toto Statement."""
    try:
        value = read_json(line, parse_int=_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    fields = value if isinstance(value, dict) else {}
    shaped = isinstance(fields.get("subject"), list) and isinstance(fields.get("predicateType"), str)
    if fields.get("_type") != STATEMENT or not shaped:
        raise ValueError("not an in-toto Statement")
    return fields


def is_canonical(line: bytes) -> bool:
    """Whether a line (strict JSON) is in RFC 8785 form."""
    try:
        return canonical_json(json.loads(line, parse_int=_number)) == line
    except RefusedInput:
        return False


def _number(digits: str) -> int | float:
    # RFC 8785 writes a double of 2^53 or more, up to 1e21, like an integer: it is the nearest double, not that integer.
    value = int(digits)
    return value if abs(value) < 2**53 else float(value)


@dataclass(frozen=True)
class Prefix:
    """The first ``frontier.size`` lines of a log: where they end in the file, and their tree."""

    offset: int
    frontier: Frontier

    def extended(self, lines: list[bytes]) -> Prefix:
        """This prefix with further lines (without line feeds)."""
        leaves = self.frontier.extended(leaf_hash(line) for line in lines)
        return Prefix(self.offset + sum(len(line) + 1 for line in lines), leaves)


#: The prefix without lines.
START = Prefix(0, Frontier())


@dataclass(frozen=True)
class Log:
    """The folder of one log. Touches nothing until asked."""

    folder: Path

    @property
    def origin(self) -> str:
        """The log's name in checkpoints and entries, as its folder says."""
        return ORIGIN_PREFIX + self.folder.name

    @property
    def lines_path(self) -> Path:
        """The entries, one a line, and perhaps an unsigned tail."""
        return self.folder / "log.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """The signed note: replacing it is the commit."""
        return self.folder / "checkpoint"

    @property
    def vkey_path(self) -> Path:
        """The public key, as text."""
        return self.folder / "log.vkey"

    def signed_note(self) -> bytes:
        """The checkpoint as it lies on the disk; RegistryDamaged (E-REG-NOTE) when the log has none."""
        data = read_small(self.checkpoint_path)
        if data is None:
            raise RegistryDamaged("E-REG-NOTE", f"{self.origin} has no checkpoint")
        return data

    def note(self) -> Note | None:
        """The checkpoint's note, parsed but not verified; None when the log has none."""
        data = read_small(self.checkpoint_path)
        return None if data is None else Note.parse(data)

    def checkpoint(self) -> Checkpoint | None:
        """What the checkpoint says, unverified; None when there is none. RegistryDamaged when it is malformed."""
        note = self.note()
        if note is None:
            return None
        checkpoint = Checkpoint.parse(note.text)
        if checkpoint.origin != self.origin:
            raise RegistryDamaged(
                "E-REG-NOTE", f"the checkpoint in registry/{self.folder.name} is of {checkpoint.origin}"
            )
        return checkpoint

    def vkey(self) -> VerifierKey:
        """The log's public key; RegistryDamaged (E-REG-NOTE) when it is missing or of another log."""
        data = read_small(self.vkey_path)
        text = "" if data is None else data.decode("utf-8", "replace")
        if not text.endswith("\n"):
            raise RegistryDamaged("E-REG-NOTE", f"the key of {self.origin} is not one line")
        key = VerifierKey.parse(text.removesuffix("\n"))
        if key.name != self.origin:
            raise RegistryDamaged("E-REG-NOTE", f"the key in registry/{self.folder.name} is of {key.name}")
        return key

    def length(self) -> int:
        """The length of the file of lines; 0 when there is none."""
        try:
            return os.lstat(self.lines_path).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise failure(error, self.lines_path) from error

    def scan(self, offset: int = 0) -> Iterator[bytes]:
        """Whole lines from a byte offset on, without line feeds; ends at a line that is cut off or too long."""
        try:
            descriptor = open_regular(self.lines_path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise failure(error, self.lines_path) from error
        with os.fdopen(descriptor, "rb") as file:
            file.seek(offset)
            while (line := file.readline(MAX_LINE + 1)).endswith(b"\n"):
                yield line[:-1]

    def read(self, size: int, start: Prefix = START, into: list[bytes] | None = None) -> Prefix:
        """The prefix of ``size`` lines, read from ``start`` on; the lines go to ``into`` too.

        RegistryDamaged (E-REG-TRUNCATED) when there are fewer.
        """
        wanted, lines = size - start.frontier.size, [] if into is None else into
        if wanted:
            before = len(lines)
            for line in self.scan(start.offset):
                lines.append(line)
                if len(lines) - before == wanted:
                    break
            if len(lines) - before < wanted:
                have = start.frontier.size + len(lines) - before
                raise RegistryDamaged(
                    "E-REG-TRUNCATED",
                    f"the log {self.origin} has {have} whole lines, but {size} are signed",
                    hint="restore registry/ from git or a backup; `doit audit` shows all that is wrong",
                )
            return start.extended(lines[before:])
        return start

    def verified(self, checkpoint: Checkpoint, start: Prefix = START, into: list[bytes] | None = None) -> Prefix:
        """``read`` up to the checkpoint; RegistryDamaged (E-REG-ROOT) unless the lines have its root."""
        prefix = self.read(checkpoint.size, start, into)
        if prefix.frontier.root() != checkpoint.root:
            raise RegistryDamaged(
                "E-REG-ROOT",
                f"the lines of {self.origin} are not those that its checkpoint signs",
                facts=[f"entries signed: {checkpoint.size}"],
                hint="restore registry/ from git or a backup; `doit audit` shows all that is wrong",
            )
        return prefix

    def evidence_path(self, digest: str) -> Path:
        """Where evidence of that SHA-256 lies, or would lie."""
        if not is_digest(digest):
            raise RegistryDamaged("E-REG-EVIDENCE", f"not a digest of evidence: {digest[:80]!r}")
        return self.folder / "evidence" / digest

    def evidence(self, digest: str) -> bytes | None:
        """Evidence by its SHA-256, compared with it (E-REG-EVIDENCE); None when this log has none."""
        data = read_small(self.evidence_path(digest))
        if data is not None and sha256_bytes(data) != digest:
            raise RegistryDamaged("E-REG-EVIDENCE", f"evidence {digest[:12]} of {self.origin} has other content")
        return data


def logs_in(root: Path) -> list[Log]:
    """The logs in ``registry/``, sorted by name; folders with other names are none."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failure(error, root) from error
    return [Log(root / name) for name in names if _NAME.fullmatch(name)]


def read_small(path: Path) -> bytes | None:
    """A file's bytes; None when it does not exist. Symbolic links are not followed (DiskFailed)."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise failure(error, path) from error
