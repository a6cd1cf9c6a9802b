"""A bounded reader of YAML: bytes → plain JSON values, each with its place in the file.

It walks the parse events and never composes, so no input costs more than its size: 1 MiB, depth 32, 20,000 events,
64 KiB a scalar, one document, UTF-8. Anchors, aliases, merge keys and tags are refused, as are duplicate keys. Every
problem that leaves the rest readable is collected; what it touches is *muted*: one mistake is not reported twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ingot.core.redact import environment_secrets, has_known_form, holds_secret, names_secret, redact
from ingot.core.scalars import Refusal, plain, shorten
from ingot.errors import Problem, SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_EVENTS = 20_000
MAX_SCALAR = 64 << 10

#: Keys and list indices from the root of a file to a value.
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value or a key is written; line and column count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A file's content as JSON values, and where each value and each key is written.

    ``raw`` keeps the text of plain scalars that are not text (``3.10``); ``muted`` are the paths whose value was
    already complained about.
    """

    value: dict[str, Any]
    places: dict[Path, Place]
    keys: dict[Path, Place]
    raw: dict[Path, str] = field(default_factory=dict)
    muted: frozenset[Path] = frozenset()


def field_name(path: Path) -> str:
    """A path as a person writes it: ``targets.report.from.candidates[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" if text else shorten(part)
    return text


def read_yaml(data: bytes, file: str) -> tuple[Document, list[Problem]]:
    """The document in ``data`` and its problems; SpecError where nothing sensible is left to look at.

    ``file`` is the name that places carry.
    """
    text = _decode(data, file)
    reader = _Reader(file)
    try:
        reader.walk(_events(text, file))
        document = reader.document()
    except SpecError as error:
        raise SpecError([*reader.problems, *_in_comments(text, file, reader.problems), *error.problems]) from None
    return document, [*reader.problems, *_in_comments(text, file, reader.problems)]


def _in_comments(text: str, file: str, found: list[Problem]) -> Iterator[Problem]:
    """Secrets where no value is: comments, and what follows a mistake. The values were looked at one by one."""
    if any(problem.code == _SECRET.code for problem in found):
        return
    for number, line in enumerate(text.splitlines(), 1):
        if has_known_form(line):
            yield Problem(file, number, 1, "", _SECRET.code, _SECRET.what, _SECRET.hint)


#: The secret itself is in no message: what shows a text shows it by ``shorten`` or ``redact``.
_SECRET = Refusal(
    "E-SECRET-LITERAL",
    "this looks like an access key, a private key or a password (not shown)",
    "a spec is committed to git: keep it in a file outside the project, and revoke it if it was ever committed",
)

#: Of no known form, but known by its value.
_OF_ENVIRONMENT = Refusal(
    _SECRET.code,
    "this holds what an environment variable with the name of a secret holds (not shown)",
    "a spec is committed to git, and the log cannot forget: let the program read it from a file outside the project",
)


def _fatal(place: Place, code: str, what: str, hint: str | None = None) -> SpecError:
    return SpecError([Problem(place.file, place.line, place.column, "", code, what, hint)])


def _decode(data: bytes, file: str) -> str:
    top = Place(file, 1, 1)
    if len(data) > MAX_BYTES:
        raise _fatal(top, "E-YAML-SIZE", f"the file has {len(data):,} bytes; a spec has at most {MAX_BYTES:,}")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise _fatal(_place_at(before, file), "E-YAML-UTF8", "the file is not UTF-8 text", "save it as UTF-8") from None
    if not text.strip():
        raise _fatal(top, "E-SPEC-EMPTY", "the file is empty", "`doit new` writes a starter spec")
    return text


def _place_at(before: str, file: str) -> Place:
    return Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _events(text: str, file: str) -> Iterator[Any]:
    """The parse events; a syntax error becomes a SpecError at its place."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except ReaderError as error:
        raise _fatal(_place_at(text[: error.position], file), "E-YAML-SYNTAX", "a control character") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        what = " ".join(redact(shorten(part, 160)) for part in (error.problem, error.context) if part)
        hint = "indent with spaces, not tabs" if "'\\t'" in what else None
        raise _fatal(place, "E-YAML-SYNTAX", f"broken YAML: {what}", hint) from None
    except (YAMLError, ValueError, OverflowError) as error:
        # An escape such as "\UFFFFFFFF" is an arithmetic error inside the library, without a place.
        raise _fatal(Place(file, 1, 1), "E-YAML-SYNTAX", f"broken YAML: {shorten(str(error), 160)}") from None


@dataclass
class _Frame:
    """An open mapping or list; ``key`` is the pending key of a mapping."""

    path: Path
    items: dict[str, Any] | list[Any]
    key: str | None = None

    def next_path(self) -> Path:
        if isinstance(self.items, list):
            return (*self.path, len(self.items))
        assert self.key is not None
        return (*self.path, self.key)

    def put(self, value: object) -> None:
        if isinstance(self.items, list):
            self.items.append(value)
        else:
            assert self.key is not None
            self.items[self.key] = value
            self.key = None


class _Reader:
    """Builds values and places from parse events."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._secrets = environment_secrets()
        self.problems: list[Problem] = []
        self._places: dict[Path, Place] = {}
        self._keys: dict[Path, Place] = {}
        self._raw: dict[Path, str] = {}
        self._muted: set[Path] = set()
        self._stack: list[_Frame] = []
        self._root: object = None
        self._rooted = False

    def document(self) -> Document:
        top = self._places.get((), Place(self._file, 1, 1))
        if not self._rooted or self._root is None:
            raise _fatal(top, "E-SPEC-EMPTY", "the file is empty", "`doit new` writes a starter spec")
        if not isinstance(self._root, dict):
            raise SpecError([*self.problems, _fatal(top, "E-SPEC-TYPE", "a spec is a mapping of fields").problems[0]])
        return Document(self._root, self._places, self._keys, self._raw, frozenset(self._muted))

    def walk(self, events: Iterable[Any]) -> None:
        for count, event in enumerate(events):
            if count >= MAX_EVENTS:
                raise _fatal(self._place(event), "E-YAML-NODES", f"more than {MAX_EVENTS:,} values and keys")
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                self._start_document(event)
            elif kind in ("MappingStartEvent", "SequenceStartEvent"):
                self._open(event, {} if kind == "MappingStartEvent" else [])
            elif kind in ("MappingEndEvent", "SequenceEndEvent"):
                self._put(self._stack.pop().items)
            elif kind in ("ScalarEvent", "AliasEvent"):
                self._scalar(event, alias=kind == "AliasEvent")

    def _place(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _start_document(self, event: Any) -> None:
        if self._rooted:
            raise _fatal(self._place(event), "E-YAML-MULTIDOC", "a second document; a spec file holds one")
        if event.version not in (None, (1, 2)):
            raise _fatal(self._place(event), "E-YAML-SYNTAX", "specs are YAML 1.2; remove the %YAML line")

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].items, dict) and self._stack[-1].key is None

    def _open(self, event: Any, items: dict[str, Any] | list[Any]) -> None:
        if self._wants_key():
            raise _fatal(self._place(event), "E-YAML-KEY", "a key must be text, not a mapping or a list")
        if len(self._stack) >= MAX_DEPTH:
            raise _fatal(self._place(event), "E-YAML-DEPTH", f"more than {MAX_DEPTH} levels deep")
        path = self._begin(event)
        self._stack.append(_Frame(path, items))

    def _begin(self, event: Any) -> Path:
        """Note where a value starts; refuse an anchor or a tag on it."""
        path = self._stack[-1].next_path() if self._stack else ()
        self._places[path] = self._place(event)
        self._check_marks(event, path)
        return path

    def _check_marks(self, event: Any, path: Path) -> None:
        if event.anchor is not None:
            self._refuse(event, path, Refusal("E-YAML-ALIAS", "anchors and aliases are refused", "write the value out"))
        if getattr(event, "ctag", None) is not None:
            self._refuse(event, path, Refusal("E-YAML-TAG", "tags (!…) are refused", "remove the tag"))

    def _refuse(self, event: Any, path: Path, why: Refusal) -> None:
        place = self._place(event)
        self.problems.append(
            Problem(self._file, place.line, place.column, field_name(path), why.code, why.what, why.hint)
        )
        self._muted.add(path)

    def _put(self, value: object) -> None:
        if self._stack:
            self._stack[-1].put(value)
        else:
            self._root, self._rooted = value, True

    def _scalar(self, event: Any, *, alias: bool) -> None:
        text = "" if alias else event.value
        if len(text) > MAX_SCALAR:
            raise _fatal(self._place(event), "E-YAML-SCALAR", f"a text of more than {MAX_SCALAR:,} characters")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise _fatal(self._place(event), "E-YAML-UTF8", "an escape that is no Unicode character")
        if self._wants_key():
            self._key(event, text, alias=alias)
            return
        path = self._begin(event)
        value: object = text if alias or event.style is not None else plain(text)
        if isinstance(value, Refusal):
            self._refuse(event, path, value)
            value = text
        elif not isinstance(value, str):
            self._raw[path] = text
        self._check_secret(event, path, text)
        self._put(value)

    def _check_secret(self, event: Any, path: Path, text: str) -> None:
        named = bool(path) and isinstance(path[-1], str) and names_secret(path[-1], text)
        if len(text) > 7 and (named or holds_secret(text)):
            self._refuse(event, path, _SECRET)
        elif any(value in text for value in self._secrets):
            self._refuse(event, path, _OF_ENVIRONMENT)

    def _key(self, event: Any, text: str, *, alias: bool) -> None:
        frame = self._stack[-1]
        if alias or (event.style is None and not text):
            raise _fatal(self._place(event), "E-YAML-KEY", "a key must be text")
        path = (*frame.path, text)
        self._check_marks(event, path)
        if holds_secret(text):
            self._refuse(event, frame.path, _SECRET)
        if text == "<<" and event.style is None:
            self._refuse(event, path, Refusal("E-YAML-MERGE", "merge keys (<<) are refused", "use `extends:`"))
        elif text in frame.items:
            first, place = self._keys[path], self._place(event)
            what = f"{shorten(text)!r} is written twice: first in line {first.line}, column {first.column}"
            problem = Problem(self._file, place.line, place.column, field_name(path), "E-YAML-DUPKEY", what)
            self.problems.append(problem)
        self._keys[path] = self._place(event)
        frame.key = text
