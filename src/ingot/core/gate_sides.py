"""Both sides of a gate: what was measured of the result at hand, and what of that which it is compared with.

What it is compared with is a node of the spec, or an earlier result of the same target: the ``active`` one, or
``last_good``, the newest that no recorded failure of a gate concerns and that is not the one at hand. Two measurements
compare when they are of one kind and revision, with the same parameters, on the same inputs but for the candidate (and
the reference, where the metric does not depend on it). Nothing is measured anew here: an earlier result that was
measured otherwise answers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ingot.core import quality
from ingot.core.directions import better
from ingot.core.gate_presets import KEPT
from ingot.core.gates import Gate, Other, Side, Verdict, judge
from ingot.core.item_sums import recorded_sums
from ingot.core.lineage import asked, inputs
from ingot.core.standing import CANDIDATES, MEASUREMENTS

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.project import Project
    from ingot.core.standing import Standing
    from ingot.core.store import Store

Receipt = Mapping[str, Any]
#: The roles in which a measurement holds what it measures, and what a report was made of.
_CANDIDATES = frozenset((*CANDIDATES, *MEASUREMENTS))
#: What the candidate itself said: its words are its own, how it was asked is compared apart.
_SAID = "samples"
#: The receipt of a node that counts now, by its id; None where there is none.
Now = Callable[[str], Receipt | None]


def side_of(store: Store, receipt: Receipt) -> Side:
    """A recorded measurement, with its sums a document as long as its files are here and whole."""
    return Side(receipt["metrics"], str(receipt["digest"]), partial(recorded_sums, store, receipt))


class Sides:
    """Judges gates of one project. ``standing`` is asked for only where a gate needs it: it reads the logs."""

    def __init__(self, project: Project, standing: Callable[[], Standing]) -> None:
        self._project = project
        self._standing = standing

    def judge(self, gate: Gate, node: Node, receipt: Receipt | None, now: Now) -> list[Verdict]:
        """The verdicts of one gate on what ``node`` measured."""
        side = None if receipt is None else side_of(self._project.store, receipt)
        other = self._other(gate, node, receipt, now)
        if gate.metric != KEPT or side is None or other is None or other.side is None:
            return judge(gate, side, other)
        scores = [metric for metric in other.side.metrics if quality.is_score(metric)]
        each = [replace(gate, name=f"{gate.target}.{metric}") for metric in scores]
        return [verdict for one in each for verdict in judge(one, side, _to_keep(one.metric, other))]

    def _other(self, gate: Gate, node: Node, receipt: Receipt | None, now: Now) -> Other | None:
        if gate.form is None:
            return None
        if gate.other not in ("last_good", "active"):
            return self._beside(gate, node, receipt, now)
        if receipt is None:
            return Other(gate.other, None, "nothing is measured that could be compared")
        target = subject_of(node)
        wanted = self._earlier(gate.other, target, subject_digest(node, receipt))
        if isinstance(wanted, str):
            return Other(gate.other, None, wanted, new=True)
        digest = str(wanted["digest"])
        found = self._measured(node, wanted, receipt, gate.metric)
        if found is None:
            reason = f"nothing to compare with: {digest[:12]} of {target} was not measured in the same way"
            return Other(f"{gate.other} {digest[:12]}", None, reason, new=True)
        return Other(f"{gate.other} {digest[:12]}", side_of(self._project.store, found))

    def _beside(self, gate: Gate, node: Node, receipt: Receipt | None, now: Now) -> Other:
        """Another node of the spec: as it is now, or as it was when the same inputs were measured."""
        other = self._project.nodes[f"{node.spec}:{gate.other}"]
        found = now(other.id)
        if receipt is not None and (found is None or not self._comparable(receipt, found, gate.metric)):
            earlier = self._standing().results(other.id)
            found = next((it for it in earlier if self._comparable(receipt, it, gate.metric)), None)
        if found is None:
            return Other(gate.other, None, f"{other.id} has no measurement of the same data")
        return Other(gate.other, side_of(self._project.store, found))

    def _comparable(self, one: Receipt, two: Receipt, metric: str) -> bool:
        if not comparable(one, two, metric):
            return False
        if not all(_SAID in it["inputs"] for it in (one, two)):
            return True
        lookup = self._standing().lookup
        return asked(one, lookup) == asked(two, lookup)

    def _earlier(self, which: str, target: str, present: str) -> Receipt | str:
        """The result of a target that the one at hand is compared with, or why there is none."""
        standing = self._standing()
        if which == "last_good":
            found = standing.last_good(target, besides=present)
            return found or f"nothing to compare with: no other result of {target} is good"
        decision = standing.active(target)
        if decision is None:
            return f"nothing to compare with: no result of {target} was promoted"
        if decision.digest == present:
            return f"nothing to compare with: {present[:12]} is itself active"
        result = standing.result_of(decision)
        return result or f"nothing to compare with: no log here holds the build of {decision.digest[:12]}"

    def _measured(self, node: Node, wanted: Receipt, like: Receipt | None, metric: str) -> Receipt | None:
        """The newest measurement of another result of a node's subject; of itself, where it measures itself."""
        if subject_of(node) == node.id:
            found = self._standing().lookup.build_of(dict(wanted))
            return found if like is None or self._comparable(like, found, metric) else None
        results = map(self._standing().lookup.build_of, self._standing().results(node.id))
        of_it = (it for it in results if subject_digest(node, it) == wanted["digest"])
        return next((it for it in of_it if like is None or self._comparable(like, it, metric)), None)

    def regressions(self, node: Node, receipt: Receipt | None) -> Iterator[Verdict]:
        """How a candidate that ``node`` measures stands beside its active result; nothing where that says nothing."""
        rule, target = self._project.graphs[node.spec].regression, subject_of(node)
        if rule is None or target not in self._project.index.promoted:
            return
        decision = self._standing().active(target)
        wanted = None if decision is None else self._standing().result_of(decision)
        if wanted is None or (receipt is not None and subject_digest(node, receipt) == wanted["digest"]):
            return
        theirs = self._measured(node, wanted, None, "")
        for metric in [] if theirs is None else _sampled(rule, theirs, receipt):
            found = self._measured(node, wanted, receipt, metric)
            if found is not None:
                other = Other(f"active {str(wanted['digest'])[:12]}", side_of(self._project.store, found))
                side = None if receipt is None else side_of(self._project.store, receipt)
                yield from judge(regression_gate(rule, f"{node.name}.{metric}"), side, other)


def _to_keep(metric: str, other: Other) -> Other:
    """The other of a score that is to be kept; without a side where that has none to keep."""
    if other.side is None or other.side.metrics[metric].get("value") != 0:
        return other
    return Other(other.name, None, f"{metric!r} of {other.name} is 0, of which nothing can be lost", new=True)


def _sampled(rule: Mapping[str, Any], theirs: Receipt, ours: Receipt | None) -> Sequence[str]:
    """The metrics by which two results are compared: both have an interval of them."""
    both = [theirs["metrics"]] + ([] if ours is None else [ours["metrics"]])
    shared = [name for name in theirs["metrics"] if all(it.get(name, {}).get("interval") for it in both)]
    wanted = rule.get("metrics")
    return list(quality.telling(shared)) if wanted is None else [name for name in wanted if name in shared]


def regression_gate(rule: Mapping[str, Any], name: str) -> Gate:
    """Fails where the whole interval of the difference is on the worse side of the margin."""
    metric = name.rpartition(".")[2]
    margin = float(rule.get("margin", {}).get(metric, quality.MARGINS.get(metric, 0)))
    lower = better(metric) == "lower"
    return Gate(
        name,
        max=margin if lower else None,
        min=None if lower else 0.0 - margin,
        bound="proven",
        severity=rule.get("severity", "fail"),
        undecided=rule.get("undecided", "warn"),
        form="difference",
        other="active",
        rule="regression",
    )


def subject_of(node: Node) -> str:
    """The id of the target that a node measures: its only candidate, else itself."""
    candidates = node.inputs.get("candidate", ())
    return f"{node.spec}:{candidates[0]}" if len(candidates) == 1 else node.id


def subject_digest(node: Node, receipt: Receipt) -> str:
    """The digest of what a result of a node is a measurement of."""
    if subject_of(node) == node.id:
        return str(receipt["digest"])
    candidate = receipt["inputs"].get("candidate")
    return str(candidate["digest"]) if isinstance(candidate, Mapping) else ""


def comparable(one: Receipt, two: Receipt, metric: str) -> bool:
    """Whether two results measured in the same way; what each measures of itself always compares."""
    if not all(_CANDIDATES & it["inputs"].keys() for it in (one, two)):
        return True
    parts = [(it["kind"], it["key_parts"].get("revision"), it["key_parts"].get("params")) for it in (one, two)]
    if parts[0] != parts[1]:
        return False
    shared = (one["inputs"].keys() & two["inputs"].keys()) - _CANDIDATES - {_SAID}
    if not quality.depends_on_reference(str(one["kind"]), metric):
        shared -= {"reference"}
    return all(_digests(one, role) == _digests(two, role) for role in shared)


def _digests(receipt: Receipt, role: str) -> list[str]:
    return [str(item["digest"]) for item in inputs(receipt, role)]
