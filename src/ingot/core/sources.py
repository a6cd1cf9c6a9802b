"""Sources: content read from the project or from Python itself, digested for the key, snapshot for the build.

A source counts by content. Its digest is text with a tag for the form: ``file:<sha256>`` of a file's bytes,
``tree:<digest>`` of a folder or glob (names relative to it) or of ``command``'s files (names relative to the
project), ``python_stdlib:<sha256>`` of the extracted text.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from ingot.core import stdlib_text
from ingot.core.digest import check_name, hash_file, sha256_bytes, tree_preimage, walk_files
from ingot.core.statcache import StatCache
from ingot.errors import RefusedInput

_GLOB = frozenset("*?[")


class SourceReader:
    """Digests and snapshots of the sources of one project. A source is plain JSON, as the graph holds it."""

    def __init__(self, root: Path, cache: StatCache) -> None:
        self._root = root
        self._cache = cache

    def digest(self, source: Mapping[str, object]) -> str:
        """The tagged content digest; RefusedInput (E-SOURCE) when a file is missing or cannot be read."""
        if source.get("python_stdlib"):
            return self._stdlib_digest(str(source["python_stdlib"]))
        listed = list(self._files(source))
        if self._is_single(source):
            return f"file:{self._hash(listed[0][1])}"
        return "tree:" + sha256_bytes(tree_preimage((name, self._hash(path)) for name, path in listed))

    def snapshot(self, source: Mapping[str, object], into: Path) -> tuple[Path, str]:
        """Copy the content below ``into``, hashing what is copied; returns (file or folder, tagged digest)."""
        into.mkdir(parents=True)
        if source.get("python_stdlib"):
            text = stdlib_text.extract(str(source["python_stdlib"]))
            (into / "text.jsonl").write_bytes(text)
            return into / "text.jsonl", f"python_stdlib:{sha256_bytes(text)}"
        if self._is_single(source):
            target = into / "content"
            return target, f"file:{_copy(next(iter(self._files(source)))[1], target)}"
        hashes = [(name, _copy(path, into / name)) for name, path in self._files(source)]
        folder = into / str(source.get("base") or "") if "paths" in source else into
        folder.mkdir(parents=True, exist_ok=True)
        return folder, "tree:" + sha256_bytes(tree_preimage(hashes))

    def _stdlib_digest(self, which: str) -> str:
        name = f"python_stdlib:{which}:{stdlib_text.fingerprint()}"
        known = self._cache.get(name, _NO_STAT)
        if known is None:
            known = sha256_bytes(stdlib_text.extract(which))
            self._cache.put(name, _NO_STAT, known, settled=True)
        return f"python_stdlib:{known}"

    def _is_single(self, source: Mapping[str, object]) -> bool:
        path = source.get("path")
        return isinstance(path, str) and not _GLOB & set(path) and not (self._root / path).is_dir()

    def _files(self, source: Mapping[str, object]) -> Iterator[tuple[str, Path]]:
        """(name that counts, file) pairs; at least one, else E-SOURCE."""
        if "paths" in source:
            paths = source["paths"]
            assert isinstance(paths, list | tuple)
            for item in paths:
                yield from self._expand(str(item), keep_name=True)
        else:
            yield from self._expand(str(source["path"]), keep_name=False)

    def _expand(self, pattern: str, *, keep_name: bool) -> Iterator[tuple[str, Path]]:
        if _GLOB & set(pattern):
            fixed = pattern[: min(pattern.index(char) for char in _GLOB if char in pattern)].rpartition("/")[0]
            found = sorted(glob.glob(pattern, root_dir=self._root, recursive=True), key=os.fsencode)
            names = [name for name in found if (self._root / name).is_file()]
            if not names:
                raise _missing(pattern, "no file matches")
            for name in names:
                yield (name if keep_name else name.removeprefix(f"{fixed}/") if fixed else name), self._root / name
            return
        path = self._root / pattern
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            raise _missing(pattern, (error.strerror or str(error)).lower()) from error
        if stat.S_ISDIR(mode):
            for name in walk_files(path):
                yield (f"{pattern}/{name}" if keep_name else name), path / name
        elif stat.S_ISREG(mode):
            check_name(pattern)
            yield pattern, path
        else:
            raise _missing(pattern, "neither a file nor a folder (symbolic links are not followed)")

    def _hash(self, path: Path) -> str:
        name = os.path.relpath(path, self._root)
        status = os.lstat(path)
        known = self._cache.get(name, status)
        if known is None:
            try:
                known = hash_file(path)[1]
            except OSError as error:
                raise _missing(name, (error.strerror or str(error)).lower()) from error
            self._cache.put(name, status, known)
        return known


#: Stands for the stat of content whose fingerprint is already in its name.
_NO_STAT = os.stat_result((0,) * 10)


def _missing(path: str, why: str) -> RefusedInput:
    return RefusedInput(
        "E-SOURCE",
        f"the source {path!r} cannot be read: {why}",
        hint="paths in a spec are relative to the spec file",
    )


def _copy(source: Path, target: Path) -> str:
    """Copy one file and return the SHA-256 of the bytes that were copied."""
    import hashlib

    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with (
        os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as reader,
        target.open("xb") as writer,
    ):
        while block := reader.read(1 << 20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()
