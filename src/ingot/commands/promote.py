"""``doit promote``: make results the active ones of their targets, as signed entries of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, open_project, select, value
from ingot.commands.screen import Screen, plural
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.project import Project
    from ingot.core.promotion import Step

REASON_OPTION = value("reason", "why, in one line; it stays in the log for ever")


class Promote(IngotCommand):
    """Record which digests are active."""

    name = "promote"
    doc_purpose = "make results active, when their gates pass"
    doc_usage = "SPEC | SPEC:TARGET ... [--digest DIGEST] [--reason TEXT] [--json]"
    doc_description = (
        "Says in the log: this digest is the active one of this target. A spec means all its targets, in one commit. "
        "Every target must be up to date, every gate that concerns it must pass by what was measured of that very "
        "digest, and every byte of it is read again; otherwise nothing is recorded. --digest promotes an earlier "
        "recorded result of one target. Specs and cache/latest stay as they are. Exit code 1 when a gate fails "
        "(E-GATE) or is not known (E-GATE-UNKNOWN). doit show --active SPEC shows what is active, doit rollback "
        "goes back."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, None)
    cmd_options = (JSON_OPTION, value("digest", "a recorded result of the target: 8 digits or more"), REASON_OPTION)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 1 a gate fails or is not known; 2 not built, not up to date or wrong use; 4 missing or damaged bytes."""
        from ingot.core.promotion import promote

        project = open_project()
        reason = given_reason(project, options)
        nodes = _visible(project, arguments, options["digest"])
        try:
            project.require_recordable()
            steps = promote(project, nodes, options["digest"], reason)
        finally:
            keep_derived(project)
        if options["json"]:
            screen.json(_to_json(steps, reason))
        else:
            _show(screen, steps)
        return 0


def given_reason(project: Project, options: Mapping[str, Any]) -> str | None:
    """The text of ``--reason``, checked; None where it was not given."""
    from ingot.core.given_reason import checked

    return None if options["reason"] is None else checked(options["reason"], project.root)


def _visible(project: Project, names: Sequence[str], digest: str | None) -> list[Node]:
    """The targets that are meant, without the steps of a report."""
    found = [node for node in select(project, names) if not node.hidden]
    if not found:
        what = f"{names[0]} is a step of a report: it is measured and not shipped"
        raise UsageError("E-TARGET", what, hint=f"promote the report: doit promote {names[0].rpartition('.')[0]}")
    if digest is not None and len(found) > 1:
        facts = [node.id for node in found]
        what = f"--digest names a result of one target, and {' '.join(names)} means {len(found)}"
        raise UsageError("E-TARGET", what, facts=facts, hint="name one of them")
    return found


def _to_json(steps: Sequence[Step], reason: str | None) -> dict[str, Any]:
    done = [step.to_dict() | {"gates": [it.to_dict() for it in step.gates]} for step in steps if step.recorded]
    kept = [{"target": step.target, "digest": step.digest} for step in steps if not step.recorded]
    return {"format": 1, "promoted": done, "already_active": kept, "reason": reason}


def _show(screen: Screen, steps: Sequence[Step]) -> None:
    done = [step for step in steps if step.recorded]
    if not done:
        names = f"{steps[0].digest[:12]} is" if len(steps) == 1 else f"all {len(steps)} results are"
        screen.line(f"nothing to promote: {names} active already")
        return
    screen.table(("target", "active", "before", "gates"), [_row(step) for step in steps])
    screen.line()
    kept = len(steps) - len(done)
    same = f"; {kept} {'was' if kept == 1 else 'were'} active already" if kept else ""
    screen.line(f"promoted {plural(len(done), 'target')}{same}")


def _row(step: Step) -> tuple[str, ...]:
    before = "the same" if not step.recorded else "–" if step.replaces is None else step.replaces[:12]
    return step.target, step.digest[:12], before, _gates([judged.verdict.word for judged in step.gates])


def _gates(words: Sequence[str]) -> str:
    """``3 gates pass, 1 warns``: what could not be compared yet is counted by neither."""
    passed, warned = words.count("pass"), words.count("warn")
    if not passed and not warned:
        return "no gate"
    first = f"{plural(passed, 'gate')} pass{'es' * (passed == 1)}" if passed else ""
    second = f"{warned if passed else plural(warned, 'gate')} warn{'s' * (warned == 1)}" if warned else ""
    return ", ".join(filter(None, (first, second)))
