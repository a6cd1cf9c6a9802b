"""Scratch copies of virtual targets, for what cannot read a stream: made once in a run, and dropped at its end.

They lie in ``cache/staging/`` like what is being built, so a later run drops what a killed one left. They are
read-only, and every byte of one is read again before each use: nothing is built from what is not what was measured.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.core import disk
from ingot.core.digest import fast_hash_file, walk_files
from ingot.errors import RefusedInput, StoreDamaged


@dataclass(frozen=True)
class Copy:
    """A copy that is whole: its folder and the list of its files."""

    folder: Path
    files: Sequence[Mapping[str, Any]]

    def changed(self) -> list[str]:
        """What is not as it was measured, in words; every byte is read."""
        listed = {str(file["path"]): file for file in self.files}
        try:
            extra = sorted(set(walk_files(self.folder)) - listed.keys())
        except RefusedInput as error:
            return [error.what]
        except FileNotFoundError:
            return ["it is gone"]
        return [f"{name} was not there" for name in extra] + [
            f"{name} has other content" for name, file in listed.items() if not self._holds(name, file)
        ]

    def _holds(self, name: str, file: Mapping[str, Any]) -> bool:
        path = self.folder / name
        try:
            return os.lstat(path).st_size == int(file["size"]) and fast_hash_file(path) == str(file["xxh3_128"])
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk.failure(error, path) from error


class Copies:
    """The scratch copies of one run, by the id of their target; used from several threads."""

    def __init__(self) -> None:
        self._made: dict[str, Copy] = {}
        self._stack = ExitStack()
        self._lock = threading.RLock()

    def __contains__(self, name: str) -> bool:
        return name in self._made

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from making copies meanwhile: what two need is made once."""
        with self._lock:
            yield

    def put(self, name: str, copy: Copy, opened: ExitStack) -> None:
        """Keep a copy until the end, with the staging folder that it lies in."""
        self._stack.push(opened)
        self._made[name] = copy

    def folder(self, name: str) -> Path:
        """The folder of a copy, read now; StoreDamaged (E-OBJECT-DAMAGED) when it is not what was measured."""
        copy = self._made[name]
        wrong = copy.changed()
        if wrong:
            what = f"the scratch copy of {name} is damaged"
            raise StoreDamaged("E-OBJECT-DAMAGED", what, facts=wrong, hint="run doit again: it is made anew")
        return copy.folder

    def close(self) -> None:
        """Drop them all."""
        with self._lock:
            self._made.clear()
            self._stack.close()
