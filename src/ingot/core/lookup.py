"""Find entries in the logs by a text that they hold, without decoding all the others.

Every line is read and hashed, and the root compared with the checkpoint's, so what is found is what was signed for;
only lines that hold the text are decoded. Ten thousand entries cost about a tenth of a second.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ingot.core.acceptance import given_by, place_of
from ingot.core.log import ORIGIN_PREFIX, START, decode_line, logs_in
from ingot.core.registry import Entry
from ingot.core.statement import PROVENANCE, TREE, decision_of, receipt_of
from ingot.errors import RegistryDamaged

if TYPE_CHECKING:
    from ingot.core.project import Project

Receipt = dict[str, Any]

_BUILD = f'"predicateType":"{PROVENANCE}"'.encode()

#: The digest that an entry is about: the first of its subjects.
_DIGEST = re.compile(rb'"subject":\[\{"digest":\{"%b":"([0-9a-f]{64})"' % TREE.encode())

_SUBJECT = re.compile(rb'"subject":\[\{"digest":\{[^}]*\},"name":("(?:[^"\\]|\\.)*")')

#: In a build's canonical statement the key stands between the roles that are empty and the key parts.
_KEY = re.compile(rb'"internalParameters":\{"empty":\[[^\]]*\],"key":"([0-9a-f]{64})"')


def place_text(place: Mapping[str, Any]) -> str:
    """An entry's place as people write it and ``doit diff`` takes it: ``8260ee2b3a1c/4``."""
    return f"{str(place['origin']).removeprefix(ORIGIN_PREFIX)}/{place['index']}"


def is_about(target: str, name: str) -> bool:
    """Whether a name means a target: it is its own, its spec's, or that of all instances of a matrix."""
    return target == name or target.startswith((f"{name}:", f"{name}@"))


def is_meant(target: str, name: str) -> bool:
    """The same of a name that may be a pattern with ``*``."""
    return is_about(target, name) or ("*" in name and fnmatch.fnmatchcase(target, name))


def subject_digest(line: bytes) -> str | None:
    """The digest that the entry of a line is about."""
    match = _DIGEST.match(line, max(0, line.rfind(b'"subject":[')))
    return match[1].decode() if match else None


class Lookup:
    """The entries of one project's logs, read once."""

    def __init__(self, project: Project) -> None:
        self.project = project

    @cached_property
    def _lines(self) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for log in logs_in(self.project.root / "registry"):
            checkpoint = log.checkpoint()
            if checkpoint is not None:
                log.verified(checkpoint, START, found.setdefault(log.origin, []))
        return found

    def origins(self, prefix: str) -> list[str]:
        """The logs whose name (with or without ``ingot.local/``) starts with ``prefix``."""
        short = prefix.removeprefix(ORIGIN_PREFIX)
        return sorted(origin for origin in self._lines if origin.removeprefix(ORIGIN_PREFIX).startswith(short))

    def entry(self, origin: str, index: int) -> Entry | None:
        """The entry at a place; None when the log is shorter."""
        lines = self._lines.get(origin, [])
        return _entry(origin, index, lines[index]) if 0 <= index < len(lines) else None

    def holding(self, text: str) -> list[Entry]:
        """The entries whose line holds ``text``, oldest first: by the log's order, then by time."""
        wanted = text.encode()
        return self._decoded(
            (log, at) for log, lines in self._lines.items() for at, line in enumerate(lines) if wanted in line
        )

    def about(self, target: str) -> list[Entry]:
        """The entries whose first subject is a target, oldest first."""
        return self._decoded(self._subjects.get(target, ()))

    def about_all(self, name: str) -> list[Entry]:
        """The entries about a target, all targets of a spec, or all instances of a target, oldest first."""
        names = [each for each in self._subjects if is_about(each, name)]
        return self._decoded(place for each in names for place in self._subjects[each])

    def builds_before(self, entry: Entry, key: str) -> list[Receipt]:
        """The receipts of builds of a key that come before an entry, oldest first."""
        found = [it for it in self._decoded(self._keys.get(key, ())) if self.order(it) < self.order(entry)]
        return [self.receipt(it) for it in found]

    @cached_property
    def _keys(self) -> dict[str, list[tuple[str, int]]]:
        """The places of the builds of each key."""
        found: dict[str, list[tuple[str, int]]] = {}
        for origin, lines in self._lines.items():
            for index, line in enumerate(lines):
                match = _KEY.search(line)
                if match:
                    found.setdefault(match[1].decode(), []).append((origin, index))
        return found

    @cached_property
    def _subjects(self) -> dict[str, list[tuple[str, int]]]:
        """The places of the entries about each target: the subjects are the last field of a canonical statement."""
        found: dict[str, list[tuple[str, int]]] = {}
        for origin, lines in self._lines.items():
            for index, line in enumerate(lines):
                match = _SUBJECT.match(line, max(0, line.rfind(b'"subject":[')))
                if match:
                    found.setdefault(str(json.loads(match[1])), []).append((origin, index))
        return found

    def decisions(self, *types: str) -> list[Entry]:
        """The entries of these types of decision, oldest first."""
        wanted = tuple(f'"predicateType":"urn:ingot:{kind}:1"'.encode() for kind in types)
        found = self._decoded(
            (log, at) for log, lines in self._lines.items() for at, line in enumerate(lines) if _has(line, wanted)
        )
        return [entry for entry in found if entry.type in types]

    @cached_property
    def _latest(self) -> dict[str, list[str]]:
        """The latest time that each log has seen up to each entry: what logs are merged by, as in ``Registry``."""
        return {origin: list(accumulate(map(_time, lines), max)) for origin, lines in self._lines.items()}

    def order(self, entry: Entry) -> tuple[str, str, int]:
        """What sorts entries as ``Registry.entries`` gives them."""
        return self._latest[entry.origin][entry.index], entry.origin, entry.index

    def _decoded(self, places: Iterable[tuple[str, int]]) -> list[Entry]:
        entries = [_entry(origin, index, self._lines[origin][index]) for origin, index in places]
        return sorted(entries, key=self.order)

    def builds_of(self, digest: str) -> list[Receipt]:
        """The receipts of builds whose artifact's digest starts with ``digest``, oldest first."""
        found = [self.receipt(entry) for entry in self.holding(f'"{TREE}":"{digest}') if entry.type == "build"]
        return [receipt for receipt in found if str(receipt["digest"]).startswith(digest)]

    def built(self, digest: str) -> list[Receipt]:
        """The receipts of builds of exactly this digest, oldest first; an index serves many digests."""
        return [self.receipt(entry) for entry in self._decoded(self._digests.get(digest, ()))]

    @cached_property
    def _digests(self) -> dict[str, list[tuple[str, int]]]:
        """The places of the builds of each digest."""
        found: dict[str, list[tuple[str, int]]] = {}
        for origin, lines in self._lines.items():
            for index, line in enumerate(lines):
                digest = subject_digest(line)
                if digest is not None and _BUILD in line:
                    found.setdefault(digest, []).append((origin, index))
        return found

    def with_role(self, role: str) -> list[Receipt]:
        """The receipts of builds that have an input in a role, oldest first."""
        found = self.holding(f'"annotations":{{"role":"{role}"}}')
        return [self.receipt(entry) for entry in found if entry.type == "build"]

    def builds_with_file(self, sha256: str) -> Iterator[Receipt]:
        """The receipts of builds that wrote a file of this content (where the entry itself lists its files)."""
        for entry in self.holding(f'"sha256":"{sha256}"'):
            if entry.type == "build":
                yield self.receipt(entry)

    def receipt(self, entry: Entry) -> Receipt:
        """The receipt of a build's entry, with its place."""
        receipt = receipt_of(entry.statement, self.project.registry.read_evidence)
        return receipt | {"origin": entry.origin, "index": entry.index}

    def result_of(self, entry: Entry) -> Receipt | None:
        """The receipt of the result that an entry gives its target; None for one that gives none."""
        if entry.type == "build":
            return self.receipt(entry)
        if entry.type not in ("selected", "accept"):
            return None
        fields = decision_of(entry.statement)
        return self.result(str(fields["key"]), str(fields["digest"]), {"origin": entry.origin, "index": entry.index})

    def result(self, key: str, digest: str, place: Mapping[str, Any] | None = None) -> Receipt | None:
        """The receipt of a key with this digest: the one that the entry at ``place`` gives, else the newest, or None.

        The same bytes may have been built and measured more than once.
        """
        found = [build for build in self.project.index.builds(key) if build["digest"] == digest]
        exact = [build for build in found if place is not None and place_of(given_by(build)) == place_of(place)]
        return next(reversed(exact or found), None)

    def build_of(self, receipt: Receipt) -> Receipt:
        """The receipt of the build that a result comes from: itself, unless it was accepted under another key."""
        entry = self.entry(str(receipt["origin"]), int(receipt["index"])) if "accepted" in receipt else None
        return receipt if entry is None else self.receipt(entry)

    def newest(self, target: str) -> Receipt | None:
        """The receipt of a target's newest result; None when it was never built."""
        place = self.project.index.latest.get(target)
        return None if place is None else self.result(str(place["key"]), str(place["digest"]), place)


def _has(line: bytes, wanted: Iterable[bytes]) -> bool:
    return any(text in line for text in wanted)


def _time(line: bytes) -> str:
    """The time of an entry, without decoding its line where that can be avoided.

    In a canonical statement of ours it is the last field of its name: only single values and the subjects follow.
    """
    name = b'"metadata":{"finishedOn":"' if _BUILD in line else b'"time":"'
    start = line.rfind(name)
    if start < 0:
        return ""
    end = line.index(b'"', start + len(name))
    return line[start + len(name) : end].decode("utf-8", "replace")


def _entry(origin: str, index: int, line: bytes) -> Entry:
    try:
        return Entry(origin, index, decode_line(line))
    except ValueError as error:
        raise RegistryDamaged(
            "E-REG-LINE", f"entry {index} of {origin} is malformed: {error}", hint="`doit audit` shows more"
        ) from error
