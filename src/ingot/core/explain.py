"""Why a target is in its state: in words a person uses, from what the log keeps and what the spec says now.

The planner decides; this module only explains what it decided. It prints and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ingot.core import acceptance
from ingot.core.causes import Cause, Wanted, causes, own_causes
from ingot.core.damage import examine
from ingot.core.input_changes import Given, given_in
from ingot.core.lookup import Lookup, Receipt, place_text
from ingot.core.spec_places import SpecPlaces, Spot
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned
    from ingot.core.project import Project


@dataclass(frozen=True)
class Root:
    """A target that must be built first, and how the waiting one comes to it: ids from the one to the other."""

    chain: tuple[str, ...]
    state: str
    causes: tuple[Cause, ...]

    def to_dict(self) -> dict[str, Any]:
        """The root as ``--json`` shows it."""
        return {
            "target": self.chain[-1],
            "state": self.state,
            "chain": list(self.chain),
            "reasons": [cause.to_dict() for cause in self.causes],
        }


@dataclass(frozen=True)
class Newest:
    """A target's newest result: its receipt, since when it is that, by which entry, and why it was built."""

    receipt: Mapping[str, Any]
    since: str
    entry: Mapping[str, Any]
    why_built: str

    @property
    def selected(self) -> bool:
        """Whether an entry took an earlier result again."""
        return place_text(self.entry) != place_text(self.receipt)

    def to_dict(self) -> dict[str, Any]:
        """The result as ``--json`` shows it."""
        shown = {
            "digest": self.receipt["digest"],
            "since": self.since,
            "origin": self.entry["origin"],
            "index": self.entry["index"],
            "built_at": self.receipt["timings"]["finished"],
            "built_as": self.receipt["target"],
            "built_origin": self.receipt["origin"],
            "built_index": self.receipt["index"],
            "why_built": self.why_built,
            "accepted": self.receipt.get("accepted"),
        }
        return {name: value for name, value in shown.items() if value is not None}


@dataclass(frozen=True)
class Explanation:
    """Why one target is in its state. ``causes`` are its own; ``roots`` are what it waits for."""

    node: Node
    state: str
    causes: tuple[Cause, ...]
    roots: tuple[Root, ...]
    newest: Newest | None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as ``--json`` shows it."""
        return {
            "target": self.node.id,
            "kind": self.node.kind,
            "state": self.state,
            "reasons": [cause.to_dict() for cause in self.causes],
            "waits_for": [root.to_dict() for root in self.roots],
            "result": None if self.newest is None else self.newest.to_dict(),
        }


class Explainer:
    """Explains targets of one project; ``planned`` holds them and everything that they are built from."""

    def __init__(self, project: Project, planned: Mapping[str, Planned]) -> None:
        self._project = project
        self._planned = planned
        self._lookup = Lookup(project)

    @cached_property
    def _places(self) -> SpecPlaces:
        return SpecPlaces(self._project.root, {name: graph.file for name, graph in self._project.graphs.items()})

    def explain(self, name: str) -> Explanation:
        """Why the target ``name`` is in its state."""
        item = self._planned[name]
        if item.state == "waiting":
            return Explanation(item.node, "waiting", self._own(item), self._roots(name), self._newest(item))
        return Explanation(item.node, item.state, tuple(self._causes(item)), (), self._newest(item))

    # --- causes ----------------------------------------------------------------------------------------------

    def _causes(self, item: Planned) -> Iterable[Cause]:
        """The causes of a target whose key is known; of a virtual one, what becomes of it."""
        if item.state == "evicted" or (item.state == "virtual" and item.presence != "damaged"):
            return [Cause(reason.code, reason.detail) for reason in item.reasons]
        if item.parts is None:
            # A source cannot be read, so the key is not known: nothing can be compared.
            spot = Spot(item.node.file, item.node.line)
            return [Cause(reason.code, reason.detail, spot) for reason in item.reasons]
        if item.receipt is None:
            return self._of_stale(item, item.parts)
        return [cause for reason in item.reasons for cause in self._of_present(item, reason.code, reason.detail)]

    def _of_stale(self, item: Planned, parts: Mapping[str, Any]) -> list[Cause]:
        """No result has the key that the target has now: what differs from its newest one."""
        place = self._project.index.latest.get(item.node.id)
        old = self._lookup.newest(item.node.id)
        if place is None:
            return [Cause("never_built", "never built")]
        if old is None:
            note = f"{place_text(place)} names it; doit audit says what is wrong with the logs"
            return [Cause("never_built", "the build of its newest result is in no log", None, note)]
        found = causes(old, self._wanted(item.node, parts), self._find, self._places)
        return found or [Cause("key_changed", "the form of keys changed")]

    def _of_present(self, item: Planned, code: str, detail: str) -> list[Cause]:
        """One reason of a target that has a result of its key."""
        assert item.receipt is not None
        if code == "artifact_missing" and item.receipt.get("stored") is not False:
            digest = str(item.receipt["digest"])
            words = f"artifact missing: {digest[:12]} is not in the store any more"
            return [Cause(code, words, facts={"digest": digest})]
        if code == "artifact_damaged":
            return self._wounds(item, detail)
        if code == "found_again":
            words = f"an earlier result fits again: built {_when(item.receipt)} as {_built_as(item.receipt)}"
            return [Cause(code, words, None, "the next doit takes it: nothing is built")]
        if code == "accepted":
            return [self._accepted(item)]
        if code == "forgotten":
            return [Cause(code, "forgotten by request (doit forget): it is built again although its result is at hand")]
        return [Cause(code, detail)]

    def _accepted(self, item: Planned) -> Cause:
        """Which decision gives the target its result, and what the build of it differed in."""
        assert item.receipt is not None
        assert item.parts is not None
        accepted, build = item.receipt["accepted"], self._lookup.build_of(dict(item.receipt))
        changes = [cause.words for cause in causes(build, self._wanted(item.node, item.parts), self._find)]
        note = f"built {_when(build)} as {_built_as(build)}; since then: {'; '.join(changes) or 'nothing changed'}"
        spoken = f"{acceptance.words(item.receipt)} (entry {place_text(accepted)})"
        return Cause("accepted", spoken, None, note, facts={"accepted": dict(accepted)})

    def _wounds(self, item: Planned, detail: str) -> list[Cause]:
        """The damaged file that a reason of the planner is about, with its first wrong byte where it can be known."""
        assert item.receipt is not None
        _presence, damage = self._project.store.presence(str(item.receipt["digest"]), item.receipt["files"])
        found = []
        for one in damage:
            if detail in (f"artifact damaged: {one.path} {one.detail}", ""):
                wound = examine(self._project.store, self._lookup, item.receipt, one)
                facts = {"path": wound.path, "byte": wound.byte}
                found.append(Cause("artifact_damaged", f"artifact damaged: {wound.path} {wound.detail}", facts=facts))
        return found or [Cause("artifact_damaged", detail)]

    def _own(self, item: Planned) -> tuple[Cause, ...]:
        """What would make a waiting target stale whatever its inputs become."""
        old = self._lookup.newest(item.node.id)
        if old is None:
            return ()
        names = {f"{item.node.spec}:{name}" for inputs in item.node.inputs.values() for name in inputs}
        try:
            parts = self._project.planner.parts(item.node, dict.fromkeys(names, "0" * 64))
        except RefusedInput as error:
            return (Cause("source_missing", error.what, Spot(item.node.file, item.node.line)),)
        return tuple(own_causes(old, Wanted(item.node, parts, {}), self._places))

    def _wanted(self, node: Node, parts: Mapping[str, Any]) -> Wanted:
        ids = {role: [f"{node.spec}:{name}" for name in names] for role, names in node.inputs.items() if names}
        given = {
            role: [Given(name, str(self._planned[name].identity)) for name in listed] for role, listed in ids.items()
        }
        return Wanted(node, parts, given)

    def _find(self, digest: str) -> Receipt | None:
        for item in self._planned.values():
            if item.digest == digest and item.receipt is not None:
                return dict(item.receipt)
        return next(iter(self._lookup.builds_of(digest)), None)

    # --- what a waiting target waits for ---------------------------------------------------------------------

    def _roots(self, name: str) -> tuple[Root, ...]:
        """The targets that must be built first, each by the shortest way to it, in the order of the graph."""
        chains: dict[str, tuple[str, ...]] = {name: (name,)}
        queue = [name]
        for current in queue:
            for step in self._unbuilt_inputs(current):
                if step not in chains:
                    chains[step] = (*chains[current], step)
                    queue.append(step)
        ends = [step for step in self._planned if step in chains and not self._planned[step].waits]
        return tuple(
            Root(chains[end], self._planned[end].state, tuple(self._causes(self._planned[end]))) for end in ends
        )

    def _unbuilt_inputs(self, name: str) -> list[str]:
        item = self._planned[name]
        ids = [f"{item.node.spec}:{each}" for names in item.node.inputs.values() for each in names]
        return [each for each in ids if self._planned[each].identity is None] if item.waits else []

    # --- the newest result -----------------------------------------------------------------------------------

    def _newest(self, item: Planned) -> Newest | None:
        entry = self._project.index.latest.get(item.node.id)
        receipt = self._lookup.newest(item.node.id)
        if entry is None or receipt is None:
            return None
        return Newest(receipt, str(entry["time"]), entry, self._why_built(receipt, item.node))

    def _why_built(self, receipt: Receipt, node: Node) -> str:
        """What a result's build was for: what differed from the result that its target had before."""
        receipt = self._lookup.build_of(receipt)
        before = self._before(receipt)
        if before is None:
            return "it had never been built"
        if before["key"] == receipt["key"]:
            same = "the same bytes" if before["digest"] == receipt["digest"] else "other bytes"
            return f"built again on request, or because its bytes were gone or damaged; it gave {same}"
        wanted = Wanted(node, receipt["key_parts"], given_in(receipt))
        return "; ".join(cause.words for cause in causes(before, wanted, self._find))

    def _before(self, receipt: Receipt) -> Receipt | None:
        """The result that the target had when this one was built; the log of its build holds that entry."""
        place = (receipt["origin"], receipt["index"])
        entries = self._lookup.about(str(receipt["target"]))
        earlier = takewhile(lambda entry: (entry.origin, entry.index) != place, entries)
        results = (self._lookup.result_of(entry) for entry in reversed(list(earlier)))
        return next((result for result in results if result is not None), None)


def _when(receipt: Mapping[str, Any]) -> str:
    return f"{str(receipt['timings']['finished'])[:16].replace('T', ' ')} UTC"


def _built_as(receipt: Mapping[str, Any]) -> str:
    return f"{receipt['target']} ({place_text(receipt)})"


def chain_words(chain: Sequence[str]) -> str:
    """``pruned ← merged ← adapter``: a way through the graph, without the spec's name and without its start."""
    return " ← ".join(name.partition(":")[2] for name in chain[1:])
