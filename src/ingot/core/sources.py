"""Sources: content read from the project or from Python itself, digested for the key, snapshot for the build.

A source counts by content. Its digest is text with a tag for the form: ``file:<sha256>`` of a file's bytes,
``tree:<digest>`` of a folder or glob (names relative to it) or of ``command``'s files (names relative to the
project), ``python_stdlib:<sha256>`` of the extracted text.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ingot.core import disk, stdlib_text
from ingot.core.digest import check_name, hash_file, sha256_bytes, tree_preimage, walk_files
from ingot.core.files import open_regular, refuse_sparse
from ingot.core.statcache import StatCache
from ingot.errors import RefusedInput

_GLOB = frozenset("*?[")
#: Errors that say nothing about the file that was to be read.
_NOT_THE_SOURCE = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class SourceReader:
    """Digests and snapshots of the sources of one project. A source is plain JSON, as the graph holds it."""

    def __init__(self, root: Path, cache: StatCache) -> None:
        self._root = root
        self._cache = cache

    def digest(self, source: Mapping[str, object]) -> str:
        """The tagged content digest; RefusedInput: E-SOURCE (missing or unreadable), E-PATH, E-LIMIT."""
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
            ((_name, path),) = self._files(source)
            return into / "content", f"file:{self._copy(path, into / 'content')}"
        hashes = [(name, self._copy(path, into / name)) for name, path in self._files(source)]
        folder = into / str(source.get("base") or "") if "paths" in source else into
        folder.mkdir(parents=True, exist_ok=True)
        return folder, "tree:" + sha256_bytes(tree_preimage(hashes))

    def size(self, source: Mapping[str, object]) -> int:
        """Bytes of the project files it stands for; RefusedInput (E-SOURCE) as ``digest``.

        Text of ``python_stdlib`` counts nothing: one Python always has the same, and its size is known only to who
        extracts it.
        """
        if source.get("python_stdlib"):
            return 0
        with self._explained(str(source.get("path", "files"))):
            return sum(os.lstat(path).st_size for _name, path in self._files(source))

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
            # One file may be meant by several patterns and is there once.
            yield from dict(found for item in paths for found in self._expand(str(item), keep_name=True)).items()
        else:
            yield from self._expand(str(source["path"]), keep_name=False)

    def _expand(self, pattern: str, *, keep_name: bool) -> Iterator[tuple[str, Path]]:
        with self._explained(pattern):
            if _GLOB & set(pattern):
                yield from self._matches(pattern, keep_name=keep_name)
                return
            path = self._root / pattern
            self._refuse_outside(pattern)
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                for name in walk_files(path):
                    yield (f"{pattern}/{name}" if keep_name else name), path / name
            elif stat.S_ISREG(mode):
                check_name(pattern)
                yield pattern, path
            else:
                raise _missing(pattern, "neither a file nor a folder (symbolic links are not followed)")

    def _matches(self, pattern: str, *, keep_name: bool) -> Iterator[tuple[str, Path]]:
        fixed = pattern[: min(pattern.index(char) for char in _GLOB if char in pattern)].rpartition("/")[0]
        self._refuse_unreadable(pattern, fixed)
        found = sorted(glob.glob(pattern, root_dir=self._root, recursive=True), key=os.fsencode)
        names = [name for name in found if not stat.S_ISDIR(os.lstat(self._root / name).st_mode)]
        if not names:
            raise _missing(pattern, "no file matches")
        for name in names:
            self._refuse_outside(name)
            if not stat.S_ISREG(os.lstat(self._root / name).st_mode):
                raise _missing(name, "not a regular file (symbolic links are not followed)")
            yield (name if keep_name else name.removeprefix(f"{fixed}/") if fixed else name), self._root / name

    def _refuse_outside(self, name: str) -> None:
        """RefusedInput (E-PATH) when a link on the way leads out of the project: its content is not the project's."""
        found = os.path.realpath(self._root / name)
        if os.path.commonpath([found, os.path.realpath(self._root)]) != os.path.realpath(self._root):
            raise RefusedInput(
                "E-PATH",
                f"the source {name!r} lies outside the project: a symbolic link on the way leads out of it",
                hint="copy what it points to into the project",
            )

    def _refuse_unreadable(self, pattern: str, fixed: str) -> None:
        """``glob`` passes over folders that it cannot read, which would make two different trees look the same."""
        steps = pattern.removeprefix(fixed).strip("/").split("/")
        todo = [(self._root / fixed, 0)]
        while todo:
            folder, level = todo.pop()
            # Which folders the next step leads into; none after the last step.
            name = "*" if "**" in steps[: level + 1] else steps[level] if level < len(steps) - 1 else ""
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    # As glob does: folders whose name begins with a dot are left out.
                    inside = fnmatch.fnmatchcase(entry.name, name) and not entry.name.startswith(".")
                    if inside and entry.is_dir(follow_symlinks=False):
                        todo.append((Path(entry.path), level + 1))

    def _hash(self, path: Path) -> str:
        name = os.path.relpath(path, self._root)
        with self._explained(name):
            taken = time.time_ns()
            status = os.lstat(path)
            refuse_sparse(name, status)
            known = self._cache.get(name, status)
            if known is None:
                known = hash_file(path)[1]
                self._cache.put(name, status, known, taken_ns=taken)
        return known

    def _copy(self, source: Path, target: Path) -> str:
        """Copy one file and return the SHA-256 of the bytes that were copied."""
        digest = hashlib.sha256()
        with self._explained(os.path.relpath(source, self._root)):
            reader = os.fdopen(open_regular(source), "rb")
            refuse_sparse(os.path.relpath(source, self._root), os.fstat(reader.fileno()))
        with reader, disk.explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as writer:
                while block := reader.read(1 << 20):
                    digest.update(block)
                    writer.write(block)
        return digest.hexdigest()

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """A source that cannot be read, or has gone since it was found, is RefusedInput (E-SOURCE).

        DiskFailed when the device or the system's limits are to blame: the source is as it should be.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _NOT_THE_SOURCE:
                raise disk.failure(error, self._root / path) from error
            raise _missing(path, (error.strerror or str(error)).lower()) from error


#: Stands for the stat of content whose fingerprint is already in its name.
_NO_STAT = os.stat_result((0,) * 10)


def _missing(path: str, why: str) -> RefusedInput:
    return RefusedInput(
        "E-SOURCE",
        f"the source {path!r} cannot be read: {why}",
        hint="paths in a spec are relative to the spec file",
    )
