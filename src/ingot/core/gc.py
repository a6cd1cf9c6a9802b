"""``gc``: which artifacts nobody needs, and taking them out of the store.

Kept is what something speaks for (a *root*): the result in force of each target that a spec declares; the active and
the last good result of each target, and every other one that a rollback could go back to; the newest results in the
logs, whatever they are of, with what they were built from; results younger than some days; and what is named. The rest
is evicted: its entries stay, so that it is known and can be built again. What no entry names is dropped once it is old.
While anything is built nothing is taken away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ingot.core import disk, key_locks
from ingot.core.lookup import is_meant
from ingot.core.staging import bytes_below
from ingot.core.standing import input_items
from ingot.core.statement import receipt_of

if TYPE_CHECKING:
    from ingot.core.project import Project
    from ingot.core.store import Store

Receipt = Mapping[str, Any]
#: An artifact that no entry names may be about to get one; after so long it is rubbish.
GRACE_S = 24 * 3600.0
#: Fewer digits of a digest may mean several artifacts.
DIGITS = 8
#: Why something is kept that ``newest`` alone speaks for.
NEWEST = ("among the newest", "input of one of the newest")


@dataclass(frozen=True)
class Policy:
    """What is kept beside what always is.

    ``newest``: so many of the newest results in the logs. ``days``: results built in the last days. ``keep``: all
    results of these specs or targets (or patterns of them), and digests that begin so. ``drop``: specs, targets or
    patterns whose results are evicted although they are in force, or an input of the newest; promoted and accepted
    ones stay.
    """

    newest: int = 20
    days: float = 0
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One artifact in the store: its bytes on the disk, the targets it is a result of, and why it is kept, if it is."""

    digest: str
    bytes: int
    targets: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {"digest": self.digest, "bytes": self.bytes, "targets": list(self.targets), "kept": list(self.kept)}


@dataclass
class Sorted:
    """What the store holds: kept, to be evicted, to be dropped (no entry names it), and left for now (young)."""

    kept: list[Item] = field(default_factory=list)
    evicted: list[Item] = field(default_factory=list)
    dropped: list[Item] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """Bytes that are kept because they are among the newest results, or their inputs, and for nothing else."""
        return sum(item.bytes for item in self.kept if set(item.kept) <= set(NEWEST))

    @property
    def freed(self) -> int:
        """Bytes that are freed by evicting and dropping."""
        return sum(item.bytes for item in (*self.evicted, *self.dropped))


def sort(project: Project, policy: Policy, now: float | None = None) -> Sorted:
    """Look at every artifact in the store; takes nothing away. ``now`` is the time in seconds since 1970."""
    moment = time.time() if now is None else now
    builds = [receipt_of(entry.statement) for entry in project.registry.entries() if entry.type == "build"]
    named: dict[str, dict[str, None]] = {}
    for receipt in builds:
        named.setdefault(str(receipt["digest"]), {})[str(receipt["target"])] = None
    roots = _roots(project, policy, builds, datetime.fromtimestamp(moment, UTC))
    found = Sorted()
    for digest in project.store.objects():
        path = project.store.object_path(digest)
        kept = tuple(roots.get(digest, ()))
        item = Item(digest, bytes_below(path), tuple(named.get(digest, ())), kept)
        if kept:
            found.kept.append(item)
        elif item.targets:
            found.evicted.append(item)
        else:
            old = moment - os.lstat(path).st_mtime > GRACE_S
            (found.dropped if old else found.left).append(item)
    return found


def collect(project: Project, policy: Policy) -> Sorted:
    """Take out of the store what nothing speaks for; Busy (E-BUSY) while anything is built.

    What is taken is decided under the same lock that keeps builds away.
    """
    store = project.store
    with key_locks.alone(store.root):
        project.index.sync()
        found = sort(project, policy)
        _finish_others(store)
        for item in found.evicted:
            store.evict(item.digest)
        for item in found.dropped:
            store.discard(item.digest)
        for node in project.nodes.values():
            latest = project.index.latest.get(node.id)
            # Also what an earlier one has evicted, which was killed before it came to this.
            if latest is not None and store.is_evicted(str(latest["digest"])):
                store.unlink_latest(node.spec, node.name)
    return found


def _finish_others(store: Store) -> None:
    """What a killed ``gc`` left: bytes without a name, half a mark, an object that was to go and may stay now."""
    disk.sweep_asides(store.root / "evicted")
    store.empty_trash()
    for digest in store.returned():
        store.settle(digest)


def _roots(project: Project, policy: Policy, builds: Sequence[Receipt], now: datetime) -> dict[str, dict[str, None]]:
    """Why each digest is kept, by digest; a digest that is not there may go."""
    found: dict[str, dict[str, None]] = {}
    for digest, why in _reasons(project, policy, builds, now):
        found.setdefault(digest, {})[why] = None
    return found


def _reasons(project: Project, policy: Policy, builds: Sequence[Receipt], now: datetime) -> Iterator[tuple[str, str]]:
    yield from _in_force(project, policy)
    yield from _decided(project)
    oldest = _before(now, policy.days)
    for number, receipt in enumerate(reversed(builds)):
        target, digest = str(receipt["target"]), str(receipt["digest"])
        if _is_named(target, policy.keep) or any(digest.startswith(it) for it in policy.keep if len(it) >= DIGITS):
            yield digest, "named"
        if _is_named(target, policy.drop):
            continue
        if policy.days and str(receipt["timings"]["finished"]) >= oldest:
            yield digest, "young"
        if number < policy.newest:
            yield digest, NEWEST[0]
            for given in input_items(receipt, receipt["inputs"]):
                if not _is_named(str(given["target"]), policy.drop):
                    yield str(given["digest"]), NEWEST[1]


def _before(now: datetime, days: float) -> str:
    """The moment so many days ago, as entries write it; before the first year all are younger."""
    try:
        moment = now - timedelta(days=days)
    except OverflowError:
        return ""
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")


def _in_force(project: Project, policy: Policy) -> Iterator[tuple[str, str]]:
    """The results of the targets that the specs declare: those in force, the newest, and the last good ones."""
    standing = project.standing()
    for name, item in project.planner.plan(project.nodes.values()).items():
        if item.receipt is not None and "accepted" in item.receipt:
            # Somebody wants these bytes although the spec says others: nothing would build them again.
            yield str(item.digest), "accepted"
        if _is_named(name, policy.drop):
            continue
        if item.digest is not None:
            yield item.digest, "in force"
        if name in project.index.latest:
            yield str(project.index.latest[name]["digest"]), "in force"
        good = standing.last_good(name)
        if good is not None:
            yield str(good["digest"]), "last good"


def _decided(project: Project) -> Iterator[tuple[str, str]]:
    """What is active, and what a rollback could go back to."""
    for stack in project.standing().stacks.values():
        yield from ((level.digest, "active" if level is stack[-1] else "promoted") for level in stack)


def _is_named(target: str, names: Collection[str]) -> bool:
    return any(is_meant(target, name) for name in names)
