"""``doit plan``: what a run would do to each target, why, and what that is predicted to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_project, select
from ingot.commands.screen import Screen, plural
from ingot.core.quantities import about_text, size_text

if TYPE_CHECKING:
    from ingot.core.capacity import Peak
    from ingot.core.forecast import Forecast
    from ingot.core.plan import Planned
    from ingot.core.project import Project


#: In fewer columns memory, disk and number of builds are left out, so that the reasons have room.
_WIDE = 110

_PARALLEL: Mapping[str, Any] = {
    "name": "parallel",
    "short": "n",
    "long": "process",
    "type": int,
    "default": 1,
    "help": "predict a run that builds so many targets at a time, as doit -n does",
}


class Plan(IngotCommand):
    """Show the fate of targets; builds nothing."""

    name = "plan"
    doc_purpose = "show what would be built, why, and what it will take"
    doc_usage = "[SPEC | SPEC:TARGET ...] [-n N] [--json] [--all]"
    doc_description = (
        "For each target: fresh (its result is at hand), stale (it would be built), waiting (an input would be built "
        "first), virtual (streamed into what is built from it, not written) or building (another process builds it "
        "now), with the reasons. With names: these targets and everything they are built from. Time, memory and bytes "
        "are predicted from earlier builds (of the same parameters, target or kind, scaled by the size of the inputs), "
        "never where there are none; what cannot fit is refused by doit before it starts, unless with --force."
    )
    cmd_options = (JSON_OPTION, _PARALLEL, flag("all", "show the fresh steps of a report too", short="a"))

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """Always 0: a plan is no judgement."""
        from ingot.core.forecast import forecast

        project = open_project()
        chosen = select(project, arguments, inputs=True)
        planned = {name: _building(project, item) for name, item in project.plan(chosen).items()}
        found = forecast(project, planned, list(planned), parallel=options["parallel"])
        items = [planned[node.id] for node in chosen]
        if options["json"]:
            targets = [to_json(project, item) | _foreseen(found, item) for item in items]
            screen.json({"format": 1, "targets": targets} | _forecast_json(found))
        else:
            _show(screen, project, items, found, everything=options["all"])
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
        "gates": [verdict.to_dict() for verdict in project.judge(item.node)],
    }


def _foreseen(found: Forecast, item: Planned) -> dict[str, Any]:
    prediction, floor = found.predictions.get(item.node.id), found.floors.get(item.node.id)
    kept, budget = found.kept.get(item.node.id), found.budgets.get(item.node.id)
    return {
        "resumes": None if kept is None else kept.to_dict(),
        "predicted": None if prediction is None else prediction.to_dict(),
        "at_least": None if floor is None else floor.to_dict(),
        "cost": _cost_json(found.cost(item.node.id)),
        "budget": None if budget is None else budget.to_dict(),
    }


def _cost_json(cost: tuple[float, str] | None) -> dict[str, Any] | None:
    return None if cost is None else {"value": cost[0], "currency": cost[1]}


def _forecast_json(found: Forecast) -> dict[str, Any]:
    """The whole run: seconds, the fullest moment of the disk, the peak of memory, and what does not fit."""
    room = found.room
    return {
        "totals": {
            "targets": len(found.predictions),
            "unknown": list(found.unknown),
            "wall_s": found.work.seconds(),
            "costs": found.costs(),
        },
        "disk": _peak_json(found.disk) | {"free_bytes": room.free_bytes, "reserve_bytes": room.reserve_bytes},
        "memory": _peak_json(found.memory)
        | {"available_bytes": room.available_bytes or None, "total_bytes": room.total_bytes or None},
        "refused": [refusal.to_dict() for refusal in found.refusals()],
    }


def _peak_json(peak: Peak | None) -> dict[str, Any]:
    return (
        {"needed_bytes": None, "at": []} if peak is None else {"needed_bytes": peak.needed_bytes, "at": list(peak.at)}
    )


def gate_word(project: Project, item: Planned) -> str | None:
    """The worst verdict by what is recorded: ``fail``, ``unknown``, ``warn``, ``pass``; None where nothing judges."""
    from ingot.core.gates import worst

    return worst(project.judge(item.node))


def _show(screen: Screen, project: Project, items: Sequence[Planned], found: Forecast, *, everything: bool) -> None:
    from ingot.view import budgets, forecast

    shown = [item for item in items if everything or not item.node.hidden or item.state != "fresh"]
    if not shown:
        from ingot.view.closing import NO_SPECS

        screen.line(NO_SPECS if not project.default_specs else "nothing to plan: the specs have no targets")
        return
    gates = [gate_word(project, item) for item in shown]
    with_gates = ("gate",) if any(gates) else ()
    columns = _columns(screen, found)
    rows = [
        (*_fate(item), *(word or "" for _ in with_gates), *_cells(found, item, columns), _reasons(found, item))
        for item, word in zip(shown, gates, strict=True)
    ]
    start = 3 + len(with_gates)
    right = tuple(range(start, start + len(columns)))
    screen.table(("target", "kind", "state", *with_gates, *columns, "why"), rows, right)
    screen.line()
    if found.budgets:
        screen.table(budgets.TITLES, budgets.rows(found.budgets), budgets.RIGHT)
        screen.line()
    screen.text(_summary(items))
    for text in forecast.lines(found):
        screen.text(text)
    for verdict in _failing(project, shown):
        screen.line(f"gate: {verdict}")
    _note_missing(screen, items)


def _fate(item: Planned) -> tuple[str, str, str]:
    return item.node.id, item.node.kind, item.state


def _columns(screen: Screen, found: Forecast) -> tuple[str, ...]:
    """What is predicted, as far as there is room and anything is known."""
    if all(prediction is None for prediction in found.predictions.values()) and not found.floors:
        return ()
    return ("time", "memory", "disk", "builds") if screen.width is None or screen.width >= _WIDE else ("time",)


def _cells(found: Forecast, item: Planned, columns: Sequence[str]) -> tuple[str, ...]:
    """Predictions of one target, or what it needs at the least (``≥``); nothing for a target that is not built.

    A question mark where neither history nor arithmetic says anything.
    """
    if item.node.id not in found.predictions:
        return ("",) * len(columns)
    it, floor = found.predictions[item.node.id], found.floors.get(item.node.id)
    wall, anon, size = (None, None, None) if it is None else (it.wall_s, it.peak_anon_bytes, it.bytes)
    memory = 0 if floor is None else floor.memory_bytes
    where = " GPU" if floor is not None and floor.device == "cuda" else ""
    cells = {
        "time": "?" if wall is None else f"~{about_text(wall)}",
        "memory": _bound(None if where else anon, memory) + where,
        "disk": _bound(size, 0 if floor is None else floor.bytes),
        "builds": str(it.n) if it is not None else "?" if floor is None else "0",
    }
    return tuple(cells[name] for name in columns)


def _bound(predicted: int | None, least: int) -> str:
    """``~1.2 GB``, or ``≥ 112.0 GB`` where arithmetic says more than history."""
    if least > (predicted or 0):
        return f"≥ {size_text(least)}"
    return "?" if predicted is None else f"~{size_text(predicted)}"


def _reasons(found: Forecast, item: Planned) -> str:
    if item.restored and item.receipt is not None:
        from ingot.core.reasons import found_again

        # The word that the run will say.
        return f"restored: {found_again(item.receipt, item.node.id).detail}"
    kept = found.kept.get(item.node.id)
    resumes = [] if kept is None or item.state == "building" else [f"resumes from {kept.words()}"]
    return "; ".join([*(reason.detail for reason in item.reasons), *resumes])


def _summary(items: Sequence[Planned]) -> str:
    """One line that counts the fates. What waits is not known to be built: its inputs may come out as they were."""
    stale, waiting, building, fresh = (
        sum(item.state == state for item in items) for state in ("stale", "waiting", "building", "fresh")
    )
    virtual, flowing = (
        sum(item.state == "virtual" and item.is_needed == needed for item in items) for needed in (0, 1)
    )
    evicted = sum(item.state == "evicted" for item in items)
    if fresh + virtual + flowing + evicted == len(items):
        absent = ((virtual + flowing, "virtual"), (evicted, "evicted"))
        also = "".join(f" or {word} ({count})" for count, word in absent if count)
        whole = "the target is" if len(items) == 1 else f"all {len(items)} targets are"
        return f"{whole} fresh{also}; doit would build nothing"
    parts = []
    if stale:
        parts.append(f"{plural(stale, 'target')} would be built")
    if building:
        parts.append(f"{building} {'is' if building == 1 else 'are'} being built by another process")
    if waiting:
        wait, are = ("waits", "is") if waiting == 1 else ("wait", "are")
        them = "it" if stale + building == 1 else "them"
        parts.append(f"{waiting} {wait} for {them} and {are} built only if inputs change")
    if flowing:
        parts.append(f"{flowing} virtual {'is' if flowing == 1 else 'are'} streamed")
    rest = [
        f"{count} {word}" for count, word in ((fresh, "fresh"), (virtual, "virtual"), (evicted, "evicted")) if count
    ]
    return f"{'; '.join(parts)} ({', '.join(rest)})" if rest else "; ".join(parts)


def _failing(project: Project, items: Iterable[Planned]) -> list[str]:
    """What fails or warns by what is recorded; what was not measured yet will be."""
    verdicts = (verdict for item in items for verdict in project.judge(item.node))
    return [str(it) for it in verdicts if it.word in ("fail", "warn") and it.value is not None]


def _note_missing(screen: Screen, items: Iterable[Planned]) -> None:
    """Name what is not installed and would stop the run before its first stage."""
    from ingot.core.plan import missing_device, missing_tools

    needed = [item.node for item in items if item.is_needed]
    for error in filter(None, (missing_tools(needed), missing_device(needed))):
        screen.line()
        screen.text(f"doit would refuse: {error}")
