"""What the log says, indexed: the newest entry of each target, the results of each key, failed gates, what builds took.

Everything here is derived: ``cache/index.json`` and ``cache/results/`` may lag behind the log or be deleted, and
are brought up to date from it. ``heads`` says up to where each log has been read. What others wrote to a log is taken
in only once its signature, its lines and its pins were verified; and when the file of lines has another stat than when
it was read, its lines are compared with the checkpoint again: a log that was changed by hand decides nothing.

"Newest" goes by a log's own order first and by its writer's clock second, as ``Registry.entries`` does: an entry's
time is the latest that its log has seen up to it, so a clock that was set back changes nothing.
"""

from __future__ import annotations

import json
import threading
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ingot.core import acceptance, disk
from ingot.core.index_values import Seen, gate_identity, hash_of, holds, order, place_in_time, stamp_of
from ingot.core.key import forms_of
from ingot.core.past import History
from ingot.core.registry import Entry, Head, Registry, Stamp
from ingot.core.statement import decision_of, later_than, receipt_of
from ingot.core.store import Store
from ingot.errors import RegistryDamaged

_NOTHING = Seen(0, "", "", "")
#: Of ``cache/index.json``: another one is read from the logs anew.
_FORMAT = 5
#: A file that changed this recently may change again within one tick of its time stamp: its stat proves nothing yet.
_RACY_NS = 100_000_000


#: The entries that tell what gates found.
GATE_TYPES = ("gate-failed", "gate-warned")
#: A key and a receipt to be filed under it.
_Result = tuple[str, dict[str, Any]]


class Index:
    """The derived view of a registry; ``sync`` brings it up to date, ``save`` keeps it for the next process.

    Used from several threads and processes: whatever changes it or ``cache/results/`` holds one lock.
    """

    def __init__(self, registry: Registry, store: Store) -> None:
        self._registry = registry
        self._store = store
        self._path = store.root / "index.json"
        self._lock = threading.RLock()
        self._heads: dict[str, Seen] = {}
        #: The stat of each log's lines when they were last found to be those of their checkpoint, …
        self._stamps: dict[str, Stamp | None] = {}
        #: … and those for which all of them were read: only these are kept for the next process.
        self._proven: dict[str, Stamp] = {}
        self._changed = False
        #: Heads that were loaded say what another process read: the log may have been replaced since.
        self._loaded = False
        self._repaired = False
        #: spec:target → {"digest", "key", "origin", "index", "time"} of its newest entry.
        self.latest: dict[str, dict[str, Any]] = {}
        self._gates: set[str] = set()
        #: The targets of which something was ever promoted.
        self.promoted: set[str] = set()
        #: What past builds took: what predictions are made from.
        self.history = History()
        self._load()

    def _load(self) -> None:
        try:
            data = json.loads(self._store.seal.unwrap(self._path.name, self._path.read_bytes()) or b"")
            if data["format"] == _FORMAT:
                self._heads = {origin: Seen(*seen) for origin, seen in data["heads"].items()}
                self._proven = {origin: stamp_of(stamp) for origin, stamp in data["stamps"].items()}
                self._stamps = dict(self._proven)
                self.latest, self._gates = dict(data["latest"]), set(data["gates"])
                self.promoted = set(data["promoted"])
                self.history = History(data["history"])
                self._loaded = True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Lost or damaged, or another's: everything is read from the logs again.
            self._proven, self._stamps = {}, {}
            self._start_over()

    def _start_over(self) -> None:
        self._heads, self.latest, self._gates, self.history = {}, {}, set(), History()
        self.promoted = set()

    def sync(self) -> None:
        """Read what the logs gained since; start over when a log is not a continuation of what was read.

        RegistryDamaged when a log does not verify, also one that was changed without a new checkpoint.
        """
        if not self._is_current(self._registry.heads()):
            with self._exclusive():
                self._catch_up(self._registry.heads())
        self._check_lines()

    def _check_lines(self) -> None:
        """Compare the lines with their checkpoint again wherever the file has another stat than when that was done."""
        for origin in self._heads:
            stamp = self._registry.stamp(origin)
            if stamp is None or stamp != self._stamps.get(origin):
                with self._lock:
                    self._registry.reread(origin)
                    self._stamp(origin, stamp, proven=True)

    def _stamp(self, origin: str, stamp: Stamp | None, *, proven: bool) -> None:
        """Note the stat of a log's lines, taken before they were read; ``proven`` says that all of them were."""
        self._stamps = self._stamps | {origin: stamp}
        kept = {name: known for name, known in self._proven.items() if name != origin}
        if proven and stamp is not None and clock.time_ns() - max(stamp[2:]) >= _RACY_NS:
            kept[origin] = stamp
        self._changed |= kept != self._proven
        self._proven = kept

    def add(self, entry: Entry) -> None:
        """Take in an entry that this process has just appended, and whatever others appended before it."""
        with self._exclusive():
            heads = self._registry.heads()
            seen, head = self._seen(entry.origin), heads[entry.origin]
            if entry.index == seen.size and head.size == seen.size + 1:
                time = max(seen.time, entry.time)
                self._file(self._add(entry, time), anew=False)
                self._heads = self._heads | {entry.origin: Seen(head.size, head.root, time, entry)}
                # Our own lines: for the time of this process that is enough; the next one reads them all.
                self._stamp(entry.origin, self._registry.stamp(entry.origin), proven=False)
                self._changed = True
            else:
                self._catch_up(heads)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock, self._store.exclusive("index"):
            yield

    def _is_current(self, heads: Mapping[str, Head]) -> bool:
        read = {origin: (seen.size, seen.root) for origin, seen in self._heads.items()}
        now = {origin: (head.size, head.root) for origin, head in heads.items()}
        return read == now and (self._filed() or not heads)

    def _filed(self) -> bool:
        return (self._store.root / "results").is_dir()

    def _catch_up(self, heads: Mapping[str, Head]) -> None:
        anew = not (self._heads and self._filed() and all(self._continues(origin, heads) for origin in self._heads))
        if anew:
            self._start_over()
        news: list[tuple[str, Entry]] = []
        seen = dict(self._heads)
        for origin in sorted(heads):
            if (heads[origin].size, heads[origin].root) != self._seen(origin)[:2]:
                stamp, whole = self._registry.stamp(origin), not self._registry.is_proved(origin)
                self._registry.prove(origin)
                self._stamp(origin, stamp, proven=whole)
            time, last = self._seen(origin).time, None
            for entry in self._registry.entries(origin, since=self._seen(origin).size):
                # An entry that was committed after the heads were read is left to the next call.
                if entry.index < heads[origin].size:
                    time, last = max(time, entry.time), entry
                    news.append((time, entry))
            if last is not None:
                seen[origin] = Seen(heads[origin].size, heads[origin].root, time, last)
        results = [self._add(entry, time) for time, entry in sorted(news, key=place_in_time)]
        self._file([each for found in results for each in found], anew=anew)
        self._heads, self._changed, self._loaded = seen, True, False

    def _continues(self, origin: str, heads: Mapping[str, Head]) -> bool:
        """Whether a log goes on from where it was read; a log of another branch may be as long and be another."""
        seen, head = self._heads[origin], heads.get(origin)
        if head is None or head.size < seen.size:
            return False
        if head.size == seen.size:
            return head.root == seen.root
        # The registry itself compares roots of what this process has read.
        first = self._registry.entries(origin, since=seen.size - 1) if self._loaded else iter(())
        return not self._loaded or hash_of(next(first)) == hash_of(seen.last)

    def _file(self, results: Sequence[_Result], *, anew: bool) -> None:
        found: dict[str, list[dict[str, Any]]] = {}
        for key, receipt in results:
            found.setdefault(key, []).append(receipt)
        if anew:
            self._store.file_results(found)
        else:
            for key, receipts in found.items():
                for receipt in receipts:
                    self._store.add_result(key, receipt)

    def _add(self, entry: Entry, time: str) -> list[_Result]:
        """Take in one entry; the result that it gives, to be filed under its key, and under its other form."""
        try:
            return self._take_in(entry, time)
        except RegistryDamaged as error:
            if error.code != "E-REG-ENTRY":
                raise
            raise _malformed(entry, error.what) from error
        except (KeyError, TypeError, ValueError) as error:
            raise _malformed(entry, repr(error)) from error

    def _take_in(self, entry: Entry, time: str) -> list[_Result]:
        place = {"origin": entry.origin, "index": entry.index}
        if entry.type == "build":
            receipt = receipt_of(entry.statement, self._registry.read_evidence)
            self.history.add(receipt)
            self._point(str(receipt["target"]), receipt, place | {"time": time})
            return [(key, receipt | place) for key in forms_of(receipt)]
        if entry.type == "selected":
            decision = decision_of(entry.statement)
            self._point(str(decision["target"]), decision, place | {"time": time})
        elif entry.type == "accept":
            accepted = acceptance.filed(entry.statement, place)
            self._point(str(accepted["accepted"]["target"]), accepted, place | {"time": time})
            return [(str(accepted["key"]), accepted)]
        elif entry.type in GATE_TYPES:
            self._gates.add(gate_identity(decision_of(entry.statement)))
        elif entry.type in ("promote", "rollback"):
            self.promoted.add(str(decision_of(entry.statement)["target"]))
        return []

    def _point(self, target: str, fields: Mapping[str, Any], place: Mapping[str, Any]) -> None:
        known = self.latest.get(target)
        if known is None or order(known) <= order(place):
            self.latest[target] = {"digest": fields["digest"], "key": fields["key"], **place}

    def time_to_select(self, target: str) -> str | None:
        """The time that a selection must bear to be a target's newest entry; None where now will do.

        Another log's newest entry may bear a time that is still to come: the clock of its writer was ahead.
        """
        known = self.latest.get(target)
        return None if known is None else later_than(str(known["time"]))

    def state(self) -> tuple[tuple[str, int, str], ...]:
        """Up to where each log has been read: what is derived from the logs holds as long as this is the same."""
        return tuple(sorted((origin, seen.size, seen.root) for origin, seen in self._heads.items()))

    def gate_known(self, fields: Mapping[str, Any]) -> bool:
        """Whether this failure or warning (same digest, gate, limit and reference) is already in a log."""
        return gate_identity(fields) in self._gates

    def _seen(self, origin: str) -> Seen:
        return self._heads.get(origin, _NOTHING)

    def builds(self, key: str, newest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The receipts of a key that the logs as checked out hold, oldest first; accepted ones have ``accepted``.

        ``newest`` is a value of ``latest``: when it is of this key, its result must be among them.
        """
        with self._lock:
            found = self._known(key)
            lost = newest is not None and newest["key"] == key and not holds(found or [], str(newest["digest"]))
            if found is None or (lost and not self._repaired):
                # A power cut may have kept the index and lost a result. Once is enough: what the logs do not hold,
                # such as a result that was selected on another branch, does not come back by reading them again.
                self._repaired = True
                self._heads = {}
                self.sync()
                found = self._known(key) or []
            return found

    def _known(self, key: str) -> list[dict[str, Any]] | None:
        """The results filed under a key whose entries are read; None when the file is damaged."""
        found = self._filed_under(key)
        if found is None:
            return None
        receipts = (self._receipt(item) if "accepted" in item else item for item in found)
        return [receipt for receipt in receipts if receipt is not None]

    def _receipt(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        there = self._filed_under(str(item["build"]["key"])) or []
        return acceptance.resolved(item, [build for build in there if "accepted" not in build])

    def _filed_under(self, key: str) -> list[dict[str, Any]] | None:
        found = self._store.result(key)
        return None if found is None else [it for it in found if int(it["index"]) < self._seen(it["origin"]).size]

    def save(self) -> None:
        """Keep the index for the next process; it may lag."""
        with self._lock:
            if self._changed:
                heads = {origin: seen._replace(last=hash_of(seen.last)) for origin, seen in self._heads.items()}
                data = {
                    "format": _FORMAT,
                    "heads": heads,
                    "stamps": self._proven,
                    "latest": self.latest,
                    "gates": sorted(self._gates),
                    "promoted": sorted(self.promoted),
                    "history": self.history.to_json(),
                }
                text = json.dumps(data, separators=(",", ":")).encode()
                disk.write_file_atomic(self._path, self._store.seal.wrap(self._path.name, text), durable=False)
                self._changed = False


def _malformed(entry: Entry, why: str) -> RegistryDamaged:
    """The log is signed, but its writer may have been any program."""
    what = f"entry {entry.index} of {entry.origin} is not of the form of ingot's: {why}"
    return RegistryDamaged("E-REG-ENTRY", what, hint="`doit audit` shows more")
