"""``promote`` and ``rollback``: which digest of a target is the active one, as signed entries of the log.

Whatever becomes active is here and whole at that moment: every byte is read again first. Nothing is appended when
anything is refused; several targets are one commit with one time, which is what a rollback of a spec takes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ingot.core.gatekeeper import Gatekeeper, Judged, require_passing
from ingot.core.lookup import is_about, place_text
from ingot.core.standing import Decision, Level, Standing
from ingot.core.statement import decision_statement, now
from ingot.errors import StoreDamaged, UsageError

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned
    from ingot.core.project import Project

Receipt = Mapping[str, Any]
#: The fewest digits by which a digest may be named.
_DIGITS = 8


@dataclass(frozen=True)
class Step:
    """One target that gets, or keeps, an active digest: ``recorded`` is the entry's place, None when it was active."""

    target: str
    receipt: Receipt
    replaces: str | None
    gates: tuple[Judged, ...] = ()
    recorded: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str:
        """The digest that is active afterwards."""
        return str(self.receipt["digest"])

    def to_dict(self) -> dict[str, Any]:
        """The step as ``--json`` shows it."""
        return {"target": self.target, "digest": self.digest, "replaces": self.replaces, **(self.recorded or {})}


@dataclass(frozen=True)
class Stayed:
    """A target that a rollback of several leaves as it is: nothing was active before."""

    target: str
    digest: str


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did."""

    steps: tuple[Step, ...]
    stayed: tuple[Stayed, ...] = field(default=())


def promote(project: Project, nodes: Sequence[Node], digest: str | None, reason: str | None) -> list[Step]:
    """Make the present results of these targets active, or of one target the recorded result that ``digest`` names.

    UsageError: E-NOT-BUILT, E-STALE, E-DIGEST; GateFailed: E-GATE, E-GATE-UNKNOWN; StoreDamaged: E-OBJECT-MISSING,
    E-OBJECT-DAMAGED. A target of which this digest is active already gets no entry.
    """
    specs = {node.spec for node in nodes}
    planned = project.plan(node for node in project.nodes.values() if node.spec in specs)
    standing = Standing(project)
    flowed: list[Node] = []
    if digest is None:
        # What is never written is part of what is made of it, and nothing that could be shipped. Its gates count.
        flowed = [node for node in nodes if nodes[1:] and planned[node.id].state == "virtual"]
        nodes = [node for node in nodes if node not in flowed]
        receipts = _present_results(project, [planned[node.id] for node in nodes])
    else:
        receipts = {node.id: recorded_result(standing, node.id, digest) for node in nodes}
    keeper = Gatekeeper(project, planned, standing)
    judged = {node.id: keeper.judge(node, receipts[node.id], pinned=digest is not None) for node in nodes}
    known = [(node, planned[node.id].receipt) for node in flowed]
    also = {node.id: keeper.judge(node, receipt, pinned=False) for node, receipt in known if receipt is not None}
    require_passing({**also, **judged})
    for name, receipt in receipts.items():
        require_whole(project, name, receipt)
    with project.store.exclusive("decisions"):
        # What is active may have changed while bytes were read.
        active = {name: _active(decision) for name, decision in _active_now(project, receipts).items()}
        steps = [Step(node.id, receipts[node.id], active[node.id], judged[node.id]) for node in nodes]
        return _recorded(project, "promote", steps, reason)


def _active_now(project: Project, names: Mapping[str, Any]) -> dict[str, Decision | None]:
    standing = Standing(project)
    return {name: standing.active(name) for name in names}


def _active(decision: Decision | None) -> str | None:
    return None if decision is None else decision.digest


def _present_results(project: Project, items: Sequence[Planned]) -> dict[str, Receipt]:
    """The newest result of each target, all of which must be up to date."""
    for item in items:
        if item.receipt is not None and item.presence != "present" and item.state != "virtual":
            require_whole(project, item.node.id, item.receipt)
    late = [item for item in items if item.state != "fresh" or item.restored]
    if late:
        never = all(item.node.id not in project.index.latest for item in late)
        names = ", ".join(item.node.id for item in late)
        facts = [f"{item.node.id} is {_lateness(item)}" for item in late]
        verb = "materialize " if all(item.state == "virtual" for item in late) else ""
        hint = f"doit {verb}{' '.join(item.node.id for item in late)}"
        if len(items) == 1 and not never:
            newest = str(project.index.latest[items[0].node.id]["digest"])
            hint += f"; or promote a recorded result as it is: doit promote {names} --digest {newest[:12]}"
        one = len(late) == 1
        state = f"{'was' if one else 'were'} never built" if never else f"{'is' if one else 'are'} not up to date"
        what = f"nothing was promoted: {names} {state}"
        raise UsageError("E-NOT-BUILT" if never else "E-STALE", what, facts=facts, hint=hint)
    return {item.node.id: item.receipt for item in items if item.receipt is not None}


def _lateness(item: Planned) -> str:
    why = "; ".join(reason.detail for reason in item.reasons)
    return f"{'not taken up yet' if item.restored else item.state}{f': {why}' if why else ''}"


def recorded_result(standing: Standing, target: str, digest: str) -> Receipt:
    """The newest result of a target whose digest begins so. UsageError: E-DIGEST, E-NOT-BUILT."""
    results = list(standing.results(target))
    if not results:
        raise UsageError("E-NOT-BUILT", f"no result of {target} is recorded", hint=f"build it: doit {target}")
    found = {str(item["digest"]) for item in results if len(digest) >= _DIGITS and item["digest"].startswith(digest)}
    if len(found) == 1:
        return next(item for item in results if item["digest"] in found)
    what = f"several results of {target} have" if found else f"no recorded result of {target} has"
    shown = sorted(found) or list(dict.fromkeys(f"{item['digest'][:12]} ({place_text(item)})" for item in results))
    hint = f"give {_DIGITS} digits or more; doit history {target} shows its results"
    raise UsageError("E-DIGEST", f"{what} a digest that begins with {digest[:64]}", facts=shown[:10], hint=hint)


def require_whole(project: Project, target: str, receipt: Receipt) -> None:
    """Read the artifact of a result again, every byte: StoreDamaged when it is not here or not what was published."""
    digest = str(receipt["digest"])
    presence, damage = project.store.presence(digest, receipt["files"], reread=True)
    name, done = f"the artifact {digest[:12]} of {target}", "nothing was recorded"
    if presence == "missing":
        hint = f"{done}; {_return_of(project, target, digest)}"
        raise StoreDamaged("E-OBJECT-MISSING", f"{name} is not in the store", hint=hint)
    if damage:
        facts = [f"{item.path} {item.detail}" for item in damage]
        hint = f"{done}; doit {target} moves it to cache/quarantine and builds what its spec says"
        raise StoreDamaged("E-OBJECT-DAMAGED", f"{name} is damaged", facts=facts, hint=hint)


def _return_of(project: Project, target: str, digest: str) -> str:
    """How the bytes of a result that is not here come back."""
    if not project.store.is_evicted(digest):
        return f"doit {target} builds what its spec says"
    latest = project.index.latest.get(target)
    if latest is None or latest["digest"] != digest:
        return "it was evicted, and is built again when the spec turns back to it"
    return f"it was evicted: doit materialize {target} writes it again"


def _recorded(project: Project, kind: str, steps: Sequence[Step], reason: str | None) -> list[Step]:
    """Append one entry for each step that changes what is active, in one commit."""
    time = now()
    changing = [step for step in steps if step.replaces != step.digest]
    places = iter(project.record_all([_statement(kind, step, reason, time) for step in changing]))
    return [
        Step(step.target, step.receipt, step.replaces, step.gates, next(places)) if step in changing else step
        for step in steps
    ]


def _statement(kind: str, step: Step, reason: str | None, time: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"target": step.target, "digest": step.digest, "key": step.receipt["key"]}
    fields |= {"spec": step.target.partition(":")[0], "replaces": step.replaces, "reason": reason}
    if kind == "promote":
        # What could not be compared or was not measured, and stops nothing, has no number that could be recorded.
        fields["gates"] = [judged.to_dict() for judged in step.gates if judged.verdict.value is not None]
    return decision_statement(kind, fields, time=time)


def rollback(project: Project, name: str, to: str | None, reason: str | None) -> RolledBack:
    """Take back the newest promotion among the targets that ``name`` means: each gets what was active before it.

    With ``to`` one target goes back to that digest. UsageError: E-NOT-ACTIVE, E-NO-EARLIER, E-DIGEST, E-TARGET;
    StoreDamaged as for ``promote``. No gate is judged: what was active once may become active again.
    """
    with project.store.exclusive("decisions"):
        standing = Standing(project)
        chosen = {target: stack for target, stack in standing.stacks.items() if is_about(target, name)}
        if not chosen:
            hint = "doit promote makes a result active; doit history shows what was promoted"
            raise UsageError("E-NOT-ACTIVE", f"nothing was ever promoted of {name}", hint=hint)
        goals = _goals_to(chosen, name, to) if to is not None else _goals_before(chosen)
        stayed = [Stayed(target, chosen[target][-1].digest) for target, goal in goals.items() if goal is None]
        steps = [_step(standing, chosen[target], target, goal) for target, goal in goals.items() if goal is not None]
        if not steps:
            names = ", ".join(item.target for item in stayed)
            facts = [f"{item.target}: {item.digest[:12]} is the first that was promoted" for item in stayed]
            hint = f"doit promote {stayed[0].target} --digest DIGEST makes any recorded result active"
            raise UsageError("E-NO-EARLIER", f"nothing was active before for {names}", facts=facts, hint=hint)
        for step in steps:
            require_whole(project, step.target, step.receipt)
        return RolledBack(tuple(_recorded(project, "rollback", steps, reason)), tuple(stayed))


def _goals_before(stacks: Mapping[str, tuple[Level, ...]]) -> dict[str, Level | None]:
    """The level below for each target of the newest promotion that is still in force; None where there is none."""
    newest = max((stack[-1] for stack in stacks.values()), key=lambda level: level.promoted.order)
    return {
        target: stack[-2] if len(stack) > 1 else None
        for target, stack in stacks.items()
        if stack[-1].promotion == newest.promotion
    }


def _goals_to(stacks: Mapping[str, tuple[Level, ...]], name: str, to: str) -> dict[str, Level | None]:
    if len(stacks) > 1:
        raise UsageError(
            "E-TARGET", f"--to names a digest of one target, and {name} means {len(stacks)}", facts=list(stacks)
        )
    ((target, stack),) = stacks.items()
    earlier = [level for level in stack if level.digest != stack[-1].digest]
    found = [level for level in earlier if len(to) >= _DIGITS and level.digest.startswith(to)]
    if len({level.digest for level in found}) == 1:
        return {target: found[-1]}
    what = f"{to[:64]} is no digest that was active for {target} before the present one"
    facts = [f"{level.digest[:12]}, promoted {level.promoted.time[:16].replace('T', ' ')} UTC" for level in earlier]
    hint = f"rollback only goes back; doit promote {target} --digest DIGEST takes any recorded result"
    raise UsageError("E-DIGEST", what, facts=facts, hint=hint)


def _step(standing: Standing, stack: tuple[Level, ...], target: str, goal: Level) -> Step:
    receipt = standing.result_of(goal.by)
    if receipt is None:
        what = f"no log here holds the build of {goal.digest[:12]}, which was active for {target}"
        raise UsageError("E-NOT-BUILT", what, hint="doit audit says what is wrong with the logs")
    return Step(target, receipt, stack[-1].digest)
