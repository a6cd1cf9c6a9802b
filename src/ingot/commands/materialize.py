"""``doit materialize``: write virtual targets, which are otherwise only streamed, and results that were evicted.

A run like any other, in which these targets are not virtual: what they are built from is brought up to date first, and
the result is published. Where it was streamed before, the digests must agree.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand

from ingot.commands.base import JSON_OPTION, json_text
from ingot.commands.run import Run
from ingot.errors import UsageError
from ingot.registry import unknown_target

if TYPE_CHECKING:
    from ingot.core.build import Built
    from ingot.core.graph import Node
    from ingot.core.project import Project
    from ingot.core.session import Session

_JSON = "--json"


class Materialize(Run):
    """Build virtual targets as if they were not, and evicted results again."""

    name = "materialize"
    doc_purpose = "write virtual targets, and evicted results again, into the store"
    doc_usage = "SPEC:TARGET ... [-n N] [--force] [--json]"
    doc_description = (
        "Builds a target that its spec declares `virtual: true`, with all that it is built from, and keeps its bytes: "
        "from then on they are read instead of being streamed again. Likewise one whose bytes doit gc took away. The "
        "digest must be the one that was measured before, and then nothing that was built from it becomes stale; where "
        "it is another, both are in the log, and the exit code is 1."
    )
    cmd_options = (*Run.cmd_options, JSON_OPTION)
    _json = False

    def parse_execute(self, in_args: Sequence[str]) -> Any:
        """``--json`` may follow the names of targets."""
        others = [each for each in in_args if each != _JSON]
        return super().parse_execute([_JSON, *others] if len(others) < len(in_args) else others)

    def execute(self, params: Mapping[str, Any], args: Sequence[str]) -> Any:
        """Load the tasks and run them."""
        if not args:
            usage = f"usage: doit {self.name} {self.doc_usage}"
            raise InvalidCommand(f"E-USAGE: doit materialize needs the name of a target\n{usage}")
        self._json = bool(params["json"])
        return super().execute(params, args)

    @wraps(DoitRun._execute)  # noqa: SLF001 - doit reads from the signature which options to hand over
    def _execute(self, **options: Any) -> Any:
        from ingot.reporter import LiveReporter

        session = LiveReporter.session
        if session is None:
            raise InvalidCommand("doit materialize works in a project of ingot's only")
        names = [node.id for name in self.sel_tasks for node in _written(session, name)]
        with ExitStack() as stack:
            if self._json:
                # doit's reporter has nothing to say then; what fails is said below.
                options["outfile"] = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            code = super()._execute(**options)
        done = {name: session.outcomes[name] for name in names if name in session.outcomes}
        if self._json:
            sys.stderr.writelines(f"{error}\n" for error in LiveReporter.errors.values())
            if not code:
                sys.stdout.write(json_text(_to_json(session, done), getattr(sys.stdout, "encoding", None)))
        return code or _disagreement(done)


def _written(session: Session, name: str) -> list[Node]:
    """The targets that a name means, which are not virtual in this run any more, and whose bytes it wants."""
    project = session.project
    found = [node for node in project.nodes.values() if name in (node.id, f"{node.spec}:{node.target}")]
    if not found:
        raise InvalidCommand(str(_unknown(project, name)))
    virtual = {node.id for node in found if node.virtual}
    for node in found:
        project.nodes[node.id] = replace(node, virtual=False)
    plan = project.planner.plan(project.with_inputs(project.nodes[node.id] for node in found))
    # What is here already is as it is wanted, whatever brought it back.
    plain = [node.id for node in found if node.id not in virtual and plan[node.id].state not in ("evicted", "fresh")]
    if plain:
        what = f"{plain[0]} is {plan[plain[0]].state}, not virtual or evicted"
        raise InvalidCommand(str(UsageError("E-USAGE", what, hint=f"doit {plain[0]} builds and writes it")))
    project.planner.asked.update(node.id for node in found if plan[node.id].state == "evicted")
    return found


def _unknown(project: Project, name: str) -> UsageError:
    """The error for what is no target; of a spec with those of its targets that can be written."""
    if name not in project.graphs:
        return unknown_target(name, set(project.nodes))
    planned = project.plan(node for node in project.nodes.values() if node.spec == name)
    facts = [item.node.id for item in planned.values() if item.state in ("evicted", "virtual")]
    what = f"{name!r} is a spec: the targets of it that can be written are named one by one"
    return UsageError("E-TARGET", what, facts=facts or ["none of its targets is virtual or evicted"])


def _to_json(session: Session, done: Mapping[str, Built]) -> dict[str, Any]:
    store = session.project.store
    targets = [
        {
            "target": name,
            "fate": built.fate,
            "digest": built.receipt["digest"],
            "path": os.path.relpath(store.object_path(str(built.receipt["digest"])), session.project.root),
            "agrees": _agrees(built),
        }
        for name, built in done.items()
    ]
    return {"format": 1, "targets": targets}


def _agrees(built: Built) -> bool | None:
    """Whether the bytes are those that were known before; None where none were, or nothing was built."""
    observed = built.receipt.get("observed") if built.fate == "built" else None
    return None if observed is None else bool(observed["agrees"])


def _disagreement(done: Mapping[str, Built]) -> int:
    """Say which target came out differently than it was streamed; 1 when one did."""
    differing = {name: built for name, built in done.items() if _agrees(built) is False}
    for name, built in differing.items():
        old, new = str(built.receipt["observed"]["digest"]), str(built.receipt["digest"])
        sys.stderr.write(
            f"E-DIFFERS: {name} was {old[:12]} before, and {new[:12]} was written\n"
            "  both are in the log; what was built from it is stale now\n"
            f"  hint: its kind does not give the same bytes twice here; doit diff {old[:12]} {new[:12]}\n"
        )
    return 1 if differing else 0
