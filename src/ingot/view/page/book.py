"""The entries that a page shows: each build once, with whether its artifact is at hand, and where the page has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.lookup import Lookup, place_text
from ingot.view.page.html import anchor

if TYPE_CHECKING:
    from ingot.core.project import Project

Json = Mapping[str, Any]
#: The role in which a report holds what it was made of.
EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class Entry:
    """A build of the log. ``presence``: present, missing, damaged, or not written (streamed through)."""

    receipt: Json
    presence: str
    damage: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The target that it was built as."""
        return str(self.receipt["target"])

    @property
    def digest(self) -> str:
        """Its artifact's digest."""
        return str(self.receipt["digest"])

    @property
    def place(self) -> str:
        """Where the log has it: ``8260ee2b3a1c/4``."""
        return place_text(self.receipt)

    @property
    def id(self) -> str:
        """The id of its section of the page."""
        return anchor("entry", *self.place.split("/"))

    def id_of(self, metric: str) -> str:
        """The id of the line of one of its metrics."""
        return f"{self.id}.{anchor(metric)}"

    def inputs(self) -> Iterator[tuple[str, str, str]]:
        """(role, target, digest) of everything that it was built from."""
        for role, value in self.receipt["inputs"].items():
            for item in [value] if isinstance(value, Mapping) else value:
                yield str(role), str(item["target"]), str(item["digest"])


@dataclass(frozen=True)
class Score:
    """One number of a page: a metric, and the entry of the log that holds it."""

    name: str
    metric: Json
    entry: Entry | None

    @property
    def value(self) -> float:
        """The number."""
        return float(self.metric["value"])

    @property
    def href(self) -> str | None:
        """Where on the page it is told how it was measured; None where no log holds its measurement."""
        return None if self.entry is None else f"#{self.entry.id_of(self.name.rpartition('.')[2])}"


class Book:
    """Finds entries and remembers them, in the order in which they were asked for."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.lookup = Lookup(project)
        self._found: dict[tuple[str, str], Entry | None] = {}
        self._places: dict[str, Entry] = {}

    def find(self, target: str, digest: str) -> Entry | None:
        """The build of a target's result: as the log gave it to the target, else the newest build of these bytes."""
        known = (target, digest)
        if known not in self._found:
            receipt = self._receipt(target, digest)
            self._found[known] = None if receipt is None else self._shared(receipt)
        return self._found[known]

    def known(self, target: str, digest: str) -> Entry | None:
        """What was found of a target's result before; nothing is looked up."""
        return self._found.get((target, digest))

    def take(self, receipt: Json) -> Entry:
        """The entry of a receipt that is at hand already."""
        known = (str(receipt["target"]), str(receipt["digest"]))
        found = self._shared(receipt)
        self._found[known] = found
        return found

    @property
    def entries(self) -> list[Entry]:
        """Everything found so far, each entry once, in the order of the log."""
        found = {entry.id: entry for entry in self._found.values() if entry is not None}
        return sorted(found.values(), key=lambda entry: (str(entry.receipt["origin"]), int(entry.receipt["index"])))

    def folder(self, entry: Entry | None) -> Path | None:
        """Where an artifact lies whole; None where it does not."""
        if entry is None or entry.presence != "present":
            return None
        return self.project.store.object_path(entry.digest)

    def read(self, entry: Entry | None, name: str) -> Any:
        """A JSON file of a whole artifact; None where there is none, or where it is not JSON."""
        folder = self.folder(entry)
        try:
            return None if folder is None else json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def lines(self, entry: Entry | None, name: str) -> list[dict[str, Any]]:
        """The objects of a file of lines of JSON of a whole artifact; what is none is left out."""
        folder = self.folder(entry)
        try:
            text = "" if folder is None else (folder / name).read_text("utf-8")
            found = [json.loads(line) for line in text.split("\n") if line]
        except (OSError, ValueError):
            return []
        return [item for item in found if isinstance(item, dict)]

    def _receipt(self, target: str, digest: str) -> Json | None:
        for entry in reversed(self.lookup.about(target)):
            receipt = self.lookup.result_of(entry)
            if receipt is not None and receipt["digest"] == digest:
                return receipt
        return next(iter(reversed(self.lookup.builds_of(digest))), None)

    def _shared(self, receipt: Json) -> Entry:
        """One value for one place of the log."""
        place = place_text(receipt)
        if place not in self._places:
            self._places[place] = self._look(receipt)
        return self._places[place]

    def _look(self, receipt: Json) -> Entry:
        presence, damage = self.project.store.presence(str(receipt["digest"]), receipt["files"])
        word = "not written" if presence == "missing" and receipt.get("stored") is False else str(presence)
        return Entry(receipt, word, tuple(f"{item.path} {item.detail}" for item in damage))
