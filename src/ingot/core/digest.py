"""Every content hash of ingot: of files, of folders, and of canonical JSON.

An artifact's digest is what this command prints, run in the artifact's folder::

    find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum

so a stranger can check it without ingot. Names are part of the content. Formats and golden
vectors: ``docs/formats.md``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ingot.errors import RefusedInput

_BLOCK = 1 << 20
#: Levels of folders, and files, that an artifact or a source may have.
MAX_DEPTH = 64
MAX_FILES = 1_000_000


@dataclass(frozen=True, order=True)
class FileRecord:
    """One file of an artifact: path relative to it (posix), size in bytes, both hashes in hex."""

    path: str
    size: int
    sha256: str
    xxh3_128: str

    def to_dict(self) -> dict[str, object]:
        """The record as receipts and ``--json`` hold it."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256, "xxh3_128": self.xxh3_128}


def sha256_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """RFC 8785 canonical JSON. Raises RefusedInput (E-JSON) for NaN, infinities and integers ≥ 2^53."""
    import rfc8785

    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise RefusedInput("E-JSON", f"a value has no canonical JSON form: {error}") from error


def hash_file(path: Path) -> tuple[int, str, str]:
    """(size, SHA-256, xxh3-128) of a regular file, both hashes in one read; symbolic links are refused."""
    return hash_fd(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))


def hash_fd(descriptor: int) -> tuple[int, str, str]:
    """As ``hash_file``, of an open descriptor, which is closed."""
    sha, fast, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        view = memoryview(bytearray(_BLOCK))
        while count := file.readinto(view):
            sha.update(view[:count])
            fast.update(view[:count])
            size += count
    return size, sha.hexdigest(), fast.hexdigest()


def fast_hash_file(path: Path) -> str:
    """xxh3-128 of a file, in hex: the everyday verification, about ten times as fast as SHA-256."""
    fast = xxhash.xxh3_128()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
        view = memoryview(bytearray(_BLOCK))
        while count := file.readinto(view):
            fast.update(view[:count])
    return fast.hexdigest()


def check_name(path: str) -> None:
    """Refuse a path that the digest's command could not print unambiguously (E-NAME)."""
    bad = "\\\n\r\0"
    if any(char in path for char in bad) or path.startswith("-") or not path:
        raise RefusedInput(
            "E-NAME",
            f"a file name cannot be part of an artifact: {path!r}",
            hint="names may not hold a backslash or a line break, and may not start with '-'",
        )
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise RefusedInput("E-NAME", f"a file name is not UTF-8: {path!r}") from None


def walk_files(root: Path, *, empty_folders: bool = False) -> Iterator[str]:
    """Relative posix paths of all files below ``root``, sorted by bytes; with ``empty_folders`` those too (``name/``).

    Errors are raised, links and special files refused (E-NAME, E-OUTPUT-FILE): a walk that
    skips what it cannot read would make two different folders look the same. More than ``MAX_DEPTH`` levels or
    ``MAX_FILES`` files are refused, too (E-LIMIT).
    """
    found = list(itertools.islice(_scan(root, ""), MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise RefusedInput("E-LIMIT", f"more than {MAX_FILES:,} files in one folder")
    found.sort(key=os.fsencode)
    yield from found if empty_folders else (path for path in found if not path.endswith("/"))


def _scan(root: Path, prefix: str) -> Iterator[str]:
    if prefix.count("/") >= MAX_DEPTH:
        raise RefusedInput("E-LIMIT", f"more than {MAX_DEPTH} folders in one another: {prefix[:80]}…")
    empty = bool(prefix)
    with os.scandir(root / prefix if prefix else root) as entries:
        for entry in entries:
            empty = False
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            check_name(path)
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _scan(root, path)
            elif stat.S_ISREG(mode):
                yield path
            else:
                raise RefusedInput("E-OUTPUT-FILE", f"neither a file nor a folder: {path!r}")
    if empty:
        yield f"{prefix}/"


def record_files(root: Path, hashed: Iterable[FileRecord] = ()) -> tuple[FileRecord, ...]:
    """A FileRecord for each file below ``root``, sorted by path bytes; each file is read once.

    Those of which ``hashed`` has a record of the size that they have are not read; other records tell nothing.
    """
    known = {(record.path, record.size): record for record in hashed}
    names = [(path, os.lstat(root / path).st_size if known else 0) for path in walk_files(root)]
    return tuple(known.get(name) or FileRecord(name[0], *hash_file(root / name[0])) for name in names)


def tree_preimage(files: Iterable[tuple[str, str]]) -> bytes:
    """The text whose SHA-256 is the digest: ``<sha256>  <path>\\n`` a file, sorted by path bytes."""
    lines = []
    for path, sha256 in sorted(files, key=lambda item: os.fsencode(item[0])):
        check_name(path)
        lines.append(f"{sha256}  {path}\n")
    return "".join(lines).encode("utf-8")


def tree_digest(records: Iterable[FileRecord]) -> str:
    """The digest of an artifact from its file records."""
    return sha256_bytes(tree_preimage((record.path, record.sha256) for record in records))


def is_digest(text: object) -> bool:
    """Whether a value is 64 lower-case hex digits (nothing else: no newline, no other digits)."""
    return isinstance(text, str) and len(text) == 64 and all(char in "0123456789abcdef" for char in text)


class DuplicateKey(ValueError):
    """A JSON object that has a key twice: two readers see two things."""


def read_json(data: bytes, *, parse_int: Callable[[str], int | float] | None = None) -> object:
    """Parse JSON strictly: UTF-8 only, and duplicate keys and NaN are refused (ValueError, DuplicateKey).

    ``parse_int`` reads the integers. RecursionError for what is nested too deep.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            raise DuplicateKey("duplicate key in JSON")
        return result

    def constant(name: str) -> object:
        raise ValueError(f"{name} in JSON")

    # Of bytes, json would guess UTF-16 and UTF-32, too, where other readers see UTF-8.
    return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_int=parse_int)
