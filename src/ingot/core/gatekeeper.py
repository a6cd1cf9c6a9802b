"""Which gates concern a result, judged from what is recorded of that very digest.

A gate concerns a target when it names it, when it names what measured it as a candidate (``report.gguf@Q4_0``, or the
report itself), and, at a report, when it names one of the measurements that the report is made of. A measurement of
other bytes answers nothing: then the gate is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ingot.core import gates
from ingot.core.gate_judging import candidates_of
from ingot.core.gate_record import further
from ingot.core.gate_sides import Sides, subject_of
from ingot.core.standing import CANDIDATES, MEASUREMENTS, Standing, input_digests
from ingot.errors import GateFailed

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned
    from ingot.core.project import Project

Receipt = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """One limit that concerns a result, and the digest of the measurement that it was judged from."""

    verdict: gates.Verdict
    measured: str | None

    def to_dict(self) -> dict[str, Any]:
        """As a ``promote`` entry records it, and ``--json`` shows it."""
        verdict = self.verdict
        found = {"gate": verdict.gate, "limit": verdict.limits, "value": verdict.value, "measured": self.measured}
        return found | further(verdict)


class Gatekeeper:
    """Judges results of one project; ``planned`` holds every target of the specs that are asked about."""

    def __init__(self, project: Project, planned: Mapping[str, Planned], standing: Standing) -> None:
        self._project = project
        self._planned = planned
        self._standing = standing
        self._sides = Sides(project, lambda: standing)

    def judge(self, node: Node, receipt: Receipt, *, pinned: bool) -> tuple[Judged, ...]:
        """Every limit that concerns this result of a target.

        A target's present result is judged from measurements that are up to date; a ``pinned`` one, which may be any
        earlier result, from the newest ones that are recorded of it.
        """
        return tuple(self._judge(node, receipt, pinned=pinned))

    def _judge(self, node: Node, receipt: Receipt, *, pinned: bool) -> Iterator[Judged]:
        for gate in self._project.graphs[node.spec].gates:
            measurer = self._project.nodes[f"{node.spec}:{gate.target}"]
            found = self._measurement(measurer, node, receipt, pinned=pinned)
            if found is not None or _is_about(measurer, node):
                verdicts = self._sides.judge(gate, measurer, found, self._now)
                yield from self._known(verdicts, measurer, receipt, found)
        for measurer in self._measurers(node):
            found = self._measurement(measurer, node, receipt, pinned=pinned)
            yield from self._known(self._sides.regressions(measurer, found), measurer, receipt, found)

    def _known(
        self, verdicts: Iterable[gates.Verdict], measurer: Node, receipt: Receipt, found: Receipt | None
    ) -> Iterator[Judged]:
        """Verdicts with the digest that they were judged from, or why there is none."""
        for verdict in verdicts:
            if found is None:
                yield Judged(replace(verdict, reason=self._why_unknown(measurer, receipt)), None)
            else:
                yield Judged(verdict, str(found["digest"]))

    def _measurers(self, node: Node) -> list[Node]:
        """What measures candidates and concerns a target: it is one of them, or the report that they are of."""
        reports = [it for it in self._project.graphs[node.spec].nodes if it.inputs.get("candidates")]
        found = [(report, it) for report in reports for it in candidates_of(self._project, report)]
        return [it for report, it in found if node.id in (report.id, subject_of(it))]

    def _now(self, target: str) -> Receipt | None:
        item = self._planned.get(target)
        return None if item is None else item.receipt

    def _measurement(self, measurer: Node, node: Node, receipt: Receipt, *, pinned: bool) -> Receipt | None:
        if measurer.id == node.id:
            return receipt
        results: Iterable[Receipt]
        if pinned:
            results = map(self._standing.lookup.build_of, self._standing.results(measurer.id))
        else:
            # What it recorded under its present key counts, whether or not its own bytes are still here.
            current = self._planned[measurer.id].receipt
            results = [] if current is None else [current]
        return next((result for result in results if _measures(result, receipt)), None)

    def _why_unknown(self, measurer: Node, receipt: Receipt) -> str:
        item = self._planned.get(measurer.id)
        if item is not None and item.receipt is None:
            return f"{measurer.id} is {item.state}: what it measured is not up to date"
        return f"{measurer.id} has no measurement of {str(receipt['digest'])[:12]}"


def _is_about(measurer: Node, node: Node) -> bool:
    """Whether a gate on ``measurer`` concerns ``node`` by the wiring of the spec, measured or not."""
    candidates = [name for role in CANDIDATES for name in measurer.inputs.get(role, ())]
    implied = measurer.hidden and any(measurer.name in names for names in node.inputs.values())
    return measurer.id == node.id or node.name in candidates or implied


def _measures(result: Receipt, receipt: Receipt) -> bool:
    """Whether a result is a measurement of another one, or one that the other is made of."""
    of_it = receipt["digest"] in input_digests(result, CANDIDATES)
    return of_it or result["digest"] in input_digests(receipt, MEASUREMENTS)


def require_passing(judged: Mapping[str, Sequence[Judged]]) -> None:
    """GateFailed: E-GATE when a limit of any target is not kept, else E-GATE-UNKNOWN when one is not known."""
    bad = {name: [item.verdict for item in items if not item.verdict.passed] for name, items in judged.items()}
    stopped = [name for name, verdicts in bad.items() if verdicts]
    if not stopped:
        return
    failed = any(verdict.passed is False for verdicts in bad.values() for verdict in verdicts)
    what = "a gate fails for" if failed else "a gate is not known for"
    hint = "gates are judged from recorded measurements of these very bytes; "
    raise GateFailed(
        "E-GATE" if failed else "E-GATE-UNKNOWN",
        f"nothing was promoted: {what} {', '.join(stopped)}",
        facts=list(dict.fromkeys(str(verdict) for verdicts in bad.values() for verdict in verdicts)),
        hint=hint + ("their limits stand in the spec" if failed else "--digest takes the newest that are recorded"),
    )
