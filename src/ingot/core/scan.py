"""A ``Lookup`` that tells from the lines of the logs, undecoded, which entries measure what, and which build models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property

from ingot.core.lookup import Lookup, Receipt, subject_digest
from ingot.core.registry import Entry
from ingot.core.statement import TREE

#: What stands so in canonical statements of builds.
_MEASURED = re.compile(rb'"annotations":\{"role":"candidate"\},"digest":\{"%b":"([0-9a-f]{64})"' % TREE.encode())
_KIND = re.compile(rb'"externalParameters":\{"kind":"([a-z0-9_]+)"')


class Scan(Lookup):
    """The entries of one project's logs, by what they are about."""

    @cached_property
    def _measurements(self) -> dict[str, list[tuple[str, int]]]:
        """The places of the builds that measure each digest."""
        found: dict[str, list[tuple[str, int]]] = {}
        for origin, lines in self._lines.items():
            for index, line in enumerate(lines):
                match = _MEASURED.search(line)
                if match:
                    found.setdefault(match[1].decode(), []).append((origin, index))
        return found

    @property
    def measured(self) -> Container[str]:
        """The digests that something has measured."""
        return self._measurements.keys()

    def measuring(self, digests: Container[str]) -> Iterator[Receipt]:
        """The receipts of the builds that measure one of these digests, oldest first."""
        places = [place for digest, found in self._measurements.items() if digest in digests for place in found]
        for entry in self._decoded(places):
            if entry.type == "build":
                yield self.brief(entry)

    def brief(self, entry: Entry) -> Receipt:
        """Of a build's receipt what tells what it measured of what, and how; without its files and its times."""
        predicate = entry.statement["predicate"]
        definition = predicate["buildDefinition"]
        inputs: dict[str, list[dict[str, str]]] = {}
        for item in definition["resolvedDependencies"]:
            found = {"target": str(item["name"]), "digest": str(item["digest"][TREE])}
            inputs.setdefault(str(item["annotations"]["role"]), []).append(found)
        return {
            **definition["externalParameters"],
            **{name: definition["internalParameters"][name] for name in ("revision", "key", "key_parts")},
            "digest": entry.statement["subject"][0]["digest"][TREE],
            "inputs": inputs,
            "metrics": predicate["ingot_metrics"],
            "environment": predicate["ingot_environment"],
            "notes": predicate.get("ingot_notes", {}),
            "origin": entry.origin,
            "index": entry.index,
        }

    def whole(self, brief: Receipt) -> Receipt:
        """The receipt that a brief one is of."""
        entry = self.entry(str(brief["origin"]), int(brief["index"]))
        return brief if entry is None else self.receipt(entry)

    def _decoded(self, places: Iterable[tuple[str, int]]) -> list[Entry]:
        # The index has read each line strictly when it took it in; reading thousands again need not be as slow.
        entries = [Entry(origin, index, json.loads(self._lines[origin][index])) for origin, index in places]
        return sorted(entries, key=self.order)

    def kind_at(self, origin: str, index: int) -> str | None:
        """The kind that a build's entry names; None for another entry."""
        match = _KIND.search(self._lines[origin][index])
        return match[1].decode() if match else None

    def order_at(self, origin: str, index: int) -> tuple[str, str, int]:
        """What sorts entries as ``Registry.entries`` gives them."""
        return self._latest[origin][index], origin, index

    def given(self, wanted: Callable[[str | None, str], bool]) -> Iterator[tuple[str, Entry]]:
        """(target, entry) of each entry whose kind (None where it is no build) and digest are wanted, oldest first."""
        places: list[tuple[str, int]] = []
        for origin, lines in self._lines.items():
            for index, line in enumerate(lines):
                digest = subject_digest(line)
                if digest is not None and wanted(self.kind_at(origin, index), digest):
                    places.append((origin, index))
        for entry in self._decoded(places):
            yield str(entry.statement["subject"][0]["name"]), entry
