"""What the log says, indexed: the newest entry of each target, the results of each key, the gates that failed.

Everything here is derived: ``cache/index.json`` and ``cache/results/`` may lag behind the log or be deleted, and
are brought up to date from it. ``heads`` says up to where each log has been read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from ingot.core import disk
from ingot.core.digest import canonical_json, sha256_bytes
from ingot.core.registry import Entry, Registry
from ingot.core.statement import decision_of, receipt_of
from ingot.core.store import Store

#: Entries that say which result a target has.
_POINTING = ("build", "selected")


class Index:
    """The derived view of a registry; ``sync`` brings it up to date, ``save`` keeps it for the next process."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self._registry = registry
        self._store = store
        self._path = store.root / "index.json"
        self._heads: dict[str, tuple[int, str]] = {}
        self._changed = False
        #: spec:target → {"digest", "key", "origin", "index", "time"} of its newest entry.
        self.latest: dict[str, dict[str, Any]] = {}
        self._gates: set[str] = set()
        self._load()

    def _load(self) -> None:
        try:
            data = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return
        if isinstance(data, dict) and data.get("format") == 1:
            self._heads = {origin: (int(size), str(root)) for origin, (size, root) in data["heads"].items()}
            self.latest, self._gates = data["latest"], set(data["gates"])

    def sync(self) -> None:
        """Read what the logs gained since; start over when a log is not a continuation of what was read."""
        heads = {origin: (head.size, head.root) for origin, head in self._registry.heads().items()}
        filed = (self._store.root / "results").is_dir()
        if heads == self._heads and (filed or not heads):
            return
        grown = all(
            origin in heads and (heads[origin] == seen or heads[origin][0] > seen[0])
            for origin, seen in self._heads.items()
        )
        if not grown or not filed:
            self._heads, self.latest, self._gates = {}, {}, set()
            shutil.rmtree(self._store.root / "results", ignore_errors=True)
        entries = [
            entry for origin in sorted(heads) for entry in self._registry.entries(origin, since=self._size(origin))
        ]
        for entry in sorted(entries, key=lambda each: (each.time, each.origin, each.index)):
            self._add(entry)
        self._heads, self._changed = dict(heads), True

    def add(self, entry: Entry) -> None:
        """Take in an entry that this process has just appended, and whatever others appended before it."""
        head = self._registry.heads()[entry.origin]
        known = self._size(entry.origin)
        if entry.index == known and head.size == known + 1:
            self._add(entry)
            self._heads[entry.origin] = (head.size, head.root)
            self._changed = True
        else:
            self.sync()

    def _add(self, entry: Entry) -> None:
        place = {"origin": entry.origin, "index": entry.index}
        if entry.type == "build":
            receipt = receipt_of(entry.statement, self._registry.read_evidence)
            self._store.add_result(str(receipt["key"]), receipt | place)
            self._point(str(receipt["target"]), receipt, entry)
        elif entry.type == "selected":
            decision = decision_of(entry.statement)
            self._point(str(decision["target"]), decision, entry)
        elif entry.type == "gate-failed":
            self._gates.add(gate_identity(decision_of(entry.statement)))

    def _point(self, target: str, fields: Mapping[str, Any], entry: Entry) -> None:
        known = self.latest.get(target)
        if known is None or (known["time"], known["origin"], known["index"]) <= (entry.time, entry.origin, entry.index):
            self.latest[target] = {
                "digest": fields["digest"],
                "key": fields["key"],
                "origin": entry.origin,
                "index": entry.index,
                "time": entry.time,
            }

    def gate_known(self, fields: Mapping[str, Any]) -> bool:
        """Whether this failure (same digest, gate, limit and reference) is already in a log."""
        return gate_identity(fields) in self._gates

    def _size(self, origin: str) -> int:
        return self._heads[origin][0] if origin in self._heads else 0

    def builds(self, key: str) -> list[dict[str, Any]]:
        """The receipts of a key that the logs as checked out hold, oldest first."""
        return [build for build in self._store.read_result(key) if int(build["index"]) < self._size(build["origin"])]

    def save(self) -> None:
        """Keep the index for the next process; it may lag."""
        if self._changed:
            data = {"format": 1, "heads": self._heads, "latest": self.latest, "gates": sorted(self._gates)}
            disk.write_file_atomic(self._path, json.dumps(data, separators=(",", ":")).encode(), durable=False)
            self._changed = False


def gate_identity(fields: Mapping[str, Any]) -> str:
    """One failure of a gate, as the log records it once: (digest, gate, limit, reference)."""
    named = {name: fields.get(name) for name in ("digest", "gate", "limit", "reference")}
    return sha256_bytes(canonical_json(named))
