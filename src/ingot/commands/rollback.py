"""``doit rollback``: make active again what was active before, as signed entries of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, value
from ingot.commands.promote import REASON_OPTION, given_reason
from ingot.commands.screen import Screen

if TYPE_CHECKING:
    from ingot.core.promotion import RolledBack


class Rollback(IngotCommand):
    """Take a promotion back."""

    name = "rollback"
    doc_purpose = "make active again what was active before"
    doc_usage = "SPEC | SPEC:TARGET [--to DIGEST] [--reason TEXT] [--json]"
    doc_description = (
        "Takes back the newest promotion: each of its targets gets the digest that was active before it. Each further "
        "rollback goes one promotion further back, like undo; what was rolled back comes again only by doit promote. "
        "--to goes back to a digest that was active earlier for one target. Reads the log only (a broken spec does "
        "not matter) and judges no gate; the bytes must be here and whole. Specs and cache/latest stay as they are: "
        "doit goes on building what the specs say."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, 1)
    cmd_options = (JSON_OPTION, value("to", "a digest that was active before: 8 digits or more"), REASON_OPTION)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 2 nothing active, nothing earlier or wrong use; 4 missing or damaged bytes."""
        from ingot.core.promotion import rollback

        project = registry.open_log()
        reason = given_reason(project, options)
        try:
            registry.require_known(project, arguments[0])
            project.require_recordable()
            done = rollback(project, arguments[0], options["to"], reason)
        finally:
            keep_derived(project)
        if options["json"]:
            screen.json(_to_json(done, reason))
        else:
            _show(screen, done)
        return 0


def _to_json(done: RolledBack, reason: str | None) -> dict[str, Any]:
    stayed = [{"target": item.target, "digest": item.digest} for item in done.stayed]
    return {"format": 1, "rolled_back": [step.to_dict() for step in done.steps], "stayed": stayed, "reason": reason}


def _show(screen: Screen, done: RolledBack) -> None:
    for step in done.steps:
        screen.line(f"rolled back {step.target}: {step.digest[:12]} is active again (was {str(step.replaces)[:12]})")
    for item in done.stayed:
        screen.line(f"{item.target} stays at {item.digest[:12]}: nothing was active before it")
    screen.line("specs and cache/latest are as they were: doit goes on building what the specs say")
