"""``doit forget``: ask for a new build of targets although their results are at hand.

Takes the place of doit's own command of that name: freshness is not in doit's database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ingot.commands.base import IngotCommand, flag, open_project, select
from ingot.commands.screen import Screen


class Forget(IngotCommand):
    """Mark targets; the log and the artifacts are not touched."""

    name = "forget"
    doc_purpose = "build targets again although they are fresh"
    doc_usage = "[SPEC | SPEC:TARGET ...] [-s] [--all]"
    doc_description = (
        "The next doit builds them again and records whether the bytes agree. Nothing is removed: not the artifact, "
        "not the log. Without a name: every target of specs/*.yaml."
    )
    cmd_options = (
        flag("follow-sub", "forget what they are built from too", short="s"),
        flag("disable-default", "without a name, forget nothing"),
        flag("all", "forget all targets", short="a"),
    )

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0, or 2 for a name that means nothing; then nothing is forgotten."""
        project = open_project()
        if not arguments and options["disable-default"] and not options["all"]:
            screen.line("nothing forgotten: name a target, or give --all")
            return 0
        names = () if options["all"] else arguments
        for node in select(project, names, inputs=bool(options["follow-sub"])):
            if node.virtual and not project.store.is_linked(node.spec, node.name):
                screen.line(f"{node.id} is virtual: it is measured again whenever what is built from it is built again")
                continue
            project.store.forget(node.id)
            screen.line(f"forgetting {node.id}")
        return 0
