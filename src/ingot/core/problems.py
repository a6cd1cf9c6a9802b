"""The collector of a spec's problems: each at the place that wrote it, all of them in one error."""

from __future__ import annotations

import posixpath
from dataclasses import replace

from ingot.core.redact import redact
from ingot.core.yaml_reader import Document, Path, Place, field_name
from ingot.errors import Problem, SpecError


def redacted(problem: Problem) -> Problem:
    """A problem whose sentences hold no secret, whichever name or value they quote."""
    hint = redact(problem.hint) if problem.hint else problem.hint
    return replace(problem, field=redact(problem.field), what=redact(problem.what), hint=hint)


class Problems:
    """Problems of one (merged) document. What the reader already complained about is not reported again."""

    def __init__(self, document: Document, found: list[Problem]) -> None:
        self._document = document
        self._found = dict.fromkeys(found)
        self._muted: set[Path] = set()

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value (or the key) at ``path`` is written; where it is absent, its nearest parent."""
        if key and path in self._document.keys:
            return self._document.keys[path]
        length = next(length for length in range(len(path), -1, -1) if path[:length] in self._document.places)
        place = self._document.places[path[:length]]
        # A missing field belongs to the mapping's key: "adapter:", not its first field.
        return place if length == len(path) else self._document.keys.get(path[:length], place)

    def holds(self, path: Path) -> bool:
        """Whether the document has a value at ``path``."""
        return path in self._document.places

    def folder(self, path: Path) -> str:
        """The project-relative folder of the file that wrote ``path``."""
        return posixpath.dirname(self.place(path).file)

    def raw(self, path: Path) -> str | None:
        """The text of a plain scalar that is not text."""
        return self._document.raw.get(path)

    def is_muted(self, path: Path) -> bool:
        """Whether the reader refused the value at ``path`` or one around it, or it was muted here."""
        return any(
            path[:length] in self._document.muted or path[:length] in self._muted for length in range(len(path) + 1)
        )

    def mute(self, path: Path) -> None:
        """Add nothing more at ``path`` and below: what is wrong there follows from what was reported already."""
        self._muted.add(path)

    def add(self, path: Path, code: str, what: str, hint: str | None = None, *, key: bool = False) -> None:
        """One problem with the value (or the key) at ``path``."""
        if not self.is_muted(path):
            place = self.place(path, key=key)
            problem = Problem(place.file, place.line, place.column, field_name(path), code, what, hint)
            self._found[problem] = None

    def raise_any(self) -> None:
        """SpecError with all problems, if there are any."""
        if self._found:
            raise SpecError(list(self._found))
