"""``doit accept``: take an artifact that exists as the result of a target's present key; a signed entry says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, open_project, select, value
from ingot.commands.promote import REASON_OPTION, given_reason
from ingot.commands.screen import Screen
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.accept import Accepted
    from ingot.core.plan import Planned
    from ingot.core.project import Project


class Accept(IngotCommand):
    """Record that an artifact counts as a target's result."""

    name = "accept"
    doc_purpose = "take an existing artifact as the result of a stale target"
    doc_usage = "SPEC:TARGET --reason TEXT [--digest DIGEST] [--json]"
    doc_description = (
        "For a target that is stale although its artifact is still wanted, say after the upgrade of a tool: the log "
        "then says that this artifact is the result of the target's present key, and why. Nothing is built, and what "
        "is built from it stays fresh. Without --digest the target's newest result is taken. Another kind, other "
        "roles, a measurement of other inputs and damaged bytes are refused. doit forget SPEC:TARGET and doit build "
        "it for real."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, 1)
    cmd_options = (JSON_OPTION, value("digest", "the artifact to take: 8 digits or more"), REASON_OPTION)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 2 wrong use, never built, inputs not up to date; 3 refused; 4 missing or damaged bytes; 6 being built."""
        from ingot.core.accept import accept

        project = open_project()
        reason = given_reason(project, options)
        if reason is None:
            raise UsageError("E-REASON", "accept needs a reason", hint='say why: --reason "…"; it stays in the log')
        try:
            planned = _planned(project, arguments[0])
            project.require_recordable()
            done = accept(project, planned, options["digest"], reason)
        finally:
            keep_derived(project)
        if options["json"]:
            screen.json({"format": 1, "accepted": done.to_dict(reason) if done.recorded else None})
        else:
            _show(screen, project, done)
        return 0


def _planned(project: Project, name: str) -> Planned:
    """The fate of the one target of this name."""
    nodes = select(project, [name])
    chosen = [node for node in nodes if node.id == name]
    if not chosen:
        facts = [node.id for node in nodes if not node.hidden]
        raise UsageError("E-TARGET", f"{name!r} names several targets", facts=facts, hint="accept one of them")
    return project.plan(select(project, [name], inputs=True))[name]


def _show(screen: Screen, project: Project, done: Accepted) -> None:
    from ingot.core.changes import change_text

    if done.recorded is None or done.built is None:
        again = project.store.is_forgotten(done.target)
        note = "; doit forget asked for a new build all the same" if again else ""
        screen.line(f"nothing to accept: {done.digest[:12]} is a result of {done.target}'s present key{note}")
        return
    built = f"built {str(done.built['timings']['finished'])[:16].replace('T', ' ')} UTC as {done.built['target']}"
    screen.line(f"accepted {done.digest[:12]} for {done.target}, {built}; it differs in")
    for change in done.changes:
        screen.line(f"  {change_text(change)}")
    if not done.changes:
        screen.line("  nothing but its bytes: another result of the same key")
