"""What stands for each target by the logs alone: the newest result, the active one, the last good one.

Nothing here is stored: every answer is a fold over the entries of all logs, in the order of ``Registry.entries``.

- **latest**: the result that the target's newest entry (``build``, ``selected``, ``accept``) gives it.
- **active**: what the target's newest ``promote`` or ``rollback`` names. Promotions form a stack: ``promote`` puts a
  digest on it, ``rollback`` takes digests off until the one that it names is on top.
- **last good**: the newest result that no recorded failure of a gate concerns. A ``gate-failed`` entry concerns the
  result that it was judged at, the candidates that this result measured, and the report that was made of it; a later
  ``promote`` of the same result takes that back, since gates were judged anew then and passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ingot.core.lookup import Lookup, Receipt
from ingot.core.registry import Entry
from ingot.core.statement import decision_of
from ingot.errors import RegistryDamaged

if TYPE_CHECKING:
    from ingot.core.project import Project

#: The roles in which a measurement holds what it measures.
CANDIDATES = ("candidate", "candidates")
#: The role in which a report holds the measurements that it was made of.
MEASUREMENTS = ("evaluations",)


@dataclass(frozen=True)
class Decision:
    """A ``promote`` or ``rollback`` entry."""

    type: str
    target: str
    digest: str
    key: str
    time: str
    origin: str
    index: int
    #: What sorts decisions as the logs are merged.
    order: tuple[str, str, int]
    replaces: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, entry: Entry, order: tuple[str, str, int]) -> Decision:
        """The decision of an entry; RegistryDamaged (E-REG-ENTRY) where it lacks a field."""
        fields = {"time": "", **decision_of(entry.statement)}
        try:
            key = str(fields["key"])
        except KeyError as error:
            what = f"a {entry.type} entry lacks {error}"
            raise RegistryDamaged("E-REG-ENTRY", what, hint="`doit audit` shows more") from error
        target, digest, time = (str(fields[name]) for name in ("target", "digest", "time"))
        replaces, reason = fields.get("replaces"), fields.get("reason")
        return cls(entry.type, target, digest, key, time, entry.origin, entry.index, order, replaces, reason)

    def to_dict(self) -> dict[str, Any]:
        """The decision as ``--json`` shows it beside its target and digest."""
        return {name: getattr(self, name) for name in ("type", "time", "origin", "index", "replaces", "reason")}


@dataclass(frozen=True)
class Level:
    """One digest on a target's stack: the promotion that put it there, and the decision that made it active last."""

    promoted: Decision
    by: Decision

    @property
    def digest(self) -> str:
        """The digest that is active while this level is on top."""
        return self.by.digest

    @property
    def promotion(self) -> tuple[str, str]:
        """What targets that were promoted in one commit have in common: the log and the time of its entries."""
        return self.promoted.origin, self.promoted.time


def stacked(decisions: Iterable[Decision]) -> tuple[Level, ...]:
    """The stack of one target, the active level last.

    What is active already is not put there again: two logs may say the same. A rollback to what is not on the stack
    (its promotion is in a log that is not here) puts it on top: the newest decision always names what is active.
    """
    stack: list[Level] = []
    for decision in decisions:
        if stack and stack[-1].digest == decision.digest:
            continue
        level = Level(decision, decision)
        below = [at for at, known in enumerate(stack) if known.digest == decision.digest]
        if decision.type == "rollback" and below:
            level = Level(stack[below[-1]].promoted, decision)
            del stack[below[-1] :]
        stack.append(level)
    return tuple(stack)


@dataclass(frozen=True)
class _Failure:
    """A ``gate-failed`` entry: the order it came in, the spec, what it was judged at, and what that had measured."""

    order: tuple[str, str, int]
    spec: str
    digest: str
    measured: frozenset[str]

    def concerns(self, receipt: Mapping[str, Any]) -> bool:
        digest = str(receipt["digest"])
        return digest == self.digest or digest in self.measured or self.digest in input_digests(receipt, MEASUREMENTS)


class Standing:
    """The answers for one project, read once."""

    def __init__(self, project: Project, lookup: Lookup | None = None) -> None:
        self._project = project
        self.lookup = lookup or Lookup(project)

    @cached_property
    def _entries(self) -> list[Entry]:
        return self.lookup.decisions("promote", "rollback")

    @cached_property
    def stacks(self) -> dict[str, tuple[Level, ...]]:
        """The stack of each target for which something was ever promoted."""
        found: dict[str, list[Decision]] = {}
        for entry in self._entries:
            decision = Decision.of(entry, self.lookup.order(entry))
            found.setdefault(decision.target, []).append(decision)
        return {target: stacked(decisions) for target, decisions in found.items()}

    def active(self, target: str) -> Decision | None:
        """The decision by which a digest of the target is active; None when nothing was promoted."""
        stack = self.stacks.get(target)
        return stack[-1].by if stack else None

    def result_of(self, decision: Decision) -> Receipt | None:
        """The receipt of the result that a decision names; None when no log holds it."""
        found = self.lookup.result(decision.key, decision.digest)
        return found or next(iter(reversed(self.lookup.builds_of(decision.digest))), None)

    def results(self, target: str) -> Iterator[Receipt]:
        """The results that the logs ever gave a target, newest first; what was given twice comes twice."""
        for entry in reversed(self.lookup.about(target)):
            receipt = self.lookup.result_of(entry)
            if receipt is not None:
                yield receipt

    def last_good(self, target: str, *, besides: str = "") -> Receipt | None:
        """The newest result of a target that no recorded failure of a gate concerns; None when there is none.

        ``besides`` is the digest of one that does not count: the one that is to be compared with it.
        """
        others = (receipt for receipt in self.results(target) if receipt["digest"] != besides)
        return next((receipt for receipt in others if not self._failed(target, receipt)), None)

    def _failed(self, target: str, receipt: Receipt) -> bool:
        since = self._promoted.get((target, str(receipt["digest"])), ("", "", -1))
        spec = target.partition(":")[0]
        return any(
            failure.spec == spec and failure.order > since and failure.concerns(receipt) for failure in self._failures
        )

    @cached_property
    def _promoted(self) -> dict[tuple[str, str], tuple[str, str, int]]:
        """When each result of a target was promoted last, in the order of the logs."""
        return {_subject(entry): self.lookup.order(entry) for entry in self._entries if entry.type == "promote"}

    @cached_property
    def _failures(self) -> list[_Failure]:
        return [self._failure(entry) for entry in self.lookup.decisions("gate-failed")]

    def _failure(self, entry: Entry) -> _Failure:
        """What a failure concerns: what the judged result had measured, as that result stood when it was judged."""
        target, digest = _subject(entry)
        order = self.lookup.order(entry)
        before = (it for it in reversed(self.lookup.about(target)) if self.lookup.order(it) < order)
        receipts = (self.lookup.result_of(it) for it in before if _subject(it) == (target, digest))
        judged = next((receipt for receipt in receipts if receipt is not None), None)
        measured = input_digests(self.lookup.build_of(judged), CANDIDATES) if judged else frozenset()
        return _Failure(order, target.partition(":")[0], digest, measured)


def _subject(entry: Entry) -> tuple[str, str]:
    subject = entry.statement["subject"][0]
    return str(subject["name"]), str(next(iter(subject["digest"].values())))


def input_items(receipt: Mapping[str, Any], roles: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """What a receipt has in these roles, each ``{"target", "digest"}``."""
    for role in roles:
        value = receipt["inputs"].get(role, [])
        yield from [value] if isinstance(value, Mapping) else value


def input_digests(receipt: Mapping[str, Any], roles: Iterable[str]) -> frozenset[str]:
    """The digests that a receipt has in these roles."""
    return frozenset(str(item["digest"]) for item in input_items(receipt, roles))
