"""``doit plan``: what a run would do to each target, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_project, select
from ingot.commands.screen import Screen, plural

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.project import Project


class Plan(IngotCommand):
    """Show the fate of targets; builds nothing."""

    name = "plan"
    doc_purpose = "show what would be built, and why"
    doc_usage = "[SPEC | SPEC:TARGET ...] [--json] [--all]"
    doc_description = (
        "For each target: fresh (its result is at hand), stale (it would be built), waiting (an input would be built "
        "first) or building (another process builds it now), with the reasons. With names: these targets and "
        "everything they are built from."
    )
    cmd_options = (JSON_OPTION, flag("all", "show the fresh steps of a report too", short="a"))

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """Always 0: a plan is no judgement."""
        project = open_project()
        chosen = select(project, arguments, inputs=True)
        planned = {name: _building(project, item) for name, item in project.plan(chosen).items()}
        items = [planned[node.id] for node in chosen]
        if options["json"]:
            screen.json({"format": 1, "targets": [to_json(project, item) for item in items]})
        else:
            _show(screen, project, items, everything=options["all"])
        keep_derived(project)
        return 0


def _building(project: Project, item: Planned) -> Planned:
    """The same fate, or ``building`` while another process holds the lock of the key."""
    from ingot.core.locks import is_held

    if item.state != "stale" or item.key is None:
        return item
    if not is_held(project.store.root / "locks" / f"{item.key}.lock"):
        return item
    return replace(item, state="building")


def to_json(project: Project, item: Planned) -> dict[str, Any]:
    """One target of ``doit plan --json``."""
    return {
        "target": item.node.id,
        "kind": item.node.kind,
        "state": item.state,
        "present": item.presence == "present",
        "reasons": [reason.to_dict() for reason in item.reasons],
        "key": item.key,
        "digest": item.digest,
        "gate": gate_word(project, item),
    }


def gate_word(project: Project, item: Planned) -> str | None:
    """``pass``, ``fail`` or ``unknown`` by what is recorded; None for a target that no gate judges."""
    from ingot.core.gates import passes

    verdicts = project.judge(item.node)
    if not verdicts:
        return None
    return {True: "pass", False: "fail", None: "unknown"}[passes(verdicts)]


def _show(screen: Screen, project: Project, items: Sequence[Planned], *, everything: bool) -> None:
    shown = [item for item in items if everything or not item.node.hidden or item.state != "fresh"]
    if not shown:
        from ingot.view.closing import NO_SPECS

        screen.line(NO_SPECS if not project.default_specs else "nothing to plan: the specs have no targets")
        return
    gates = [gate_word(project, item) for item in shown]
    rows = [
        (item.node.id, item.node.kind, item.state, *((word or "",) if any(gates) else ()), _reasons(item))
        for item, word in zip(shown, gates, strict=True)
    ]
    screen.table(("target", "kind", "state", *(("gate",) if any(gates) else ()), "why"), rows)
    screen.line()
    screen.line(_summary(items))
    for verdict in _failing(project, shown):
        screen.line(f"gate: {verdict}")
    _note_missing(screen, items)


def _reasons(item: Planned) -> str:
    if item.restored and item.receipt is not None:
        from ingot.core.reasons import found_again

        # The word that the run will say.
        return f"restored: {found_again(item.receipt, item.node.id).detail}"
    return "; ".join(reason.detail for reason in item.reasons)


def _summary(items: Sequence[Planned]) -> str:
    """One line that counts the fates. What waits is not known to be built: its inputs may come out as they were."""
    stale, waiting, building, fresh = (
        sum(item.state == state for item in items) for state in ("stale", "waiting", "building", "fresh")
    )
    if fresh == len(items):
        return f"{'the target is' if fresh == 1 else f'all {fresh} targets are'} fresh; doit would build nothing"
    parts = []
    if stale:
        parts.append(f"{plural(stale, 'target')} would be built")
    if building:
        parts.append(f"{building} {'is' if building == 1 else 'are'} being built by another process")
    if waiting:
        wait, are = ("waits", "is") if waiting == 1 else ("wait", "are")
        them = "it" if stale + building == 1 else "them"
        parts.append(f"{waiting} {wait} for {them} and {are} built only if inputs change")
    return f"{'; '.join(parts)} ({fresh} fresh)" if fresh else "; ".join(parts)


def _failing(project: Project, items: Iterable[Planned]) -> list[str]:
    return [str(verdict) for item in items for verdict in project.judge(item.node) if verdict.passed is False]


def _note_missing(screen: Screen, items: Iterable[Planned]) -> None:
    """Name what is not installed and would stop the run before its first stage."""
    from ingot.core.plan import missing_tools

    error = missing_tools(item.node for item in items if item.state != "fresh")
    if error is not None:
        screen.line()
        screen.line(f"note: {error.what}")
        for fact in error.facts:
            screen.line(f"  {fact}")
        screen.line(f"  fix: {error.hint}")
