"""``doit why``: why a target is fresh, stale or waiting, in words, with the line of the spec that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import IngotCommand, keep_derived, open_project, select
from ingot.commands.screen import Screen, duration_text, when_text
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.causes import Cause
    from ingot.core.explain import Explanation, Newest, Root
    from ingot.core.project import Project


class Why(IngotCommand):
    """Explain the state of targets."""

    name = "why"
    doc_purpose = "say why a target is stale, waiting or fresh"
    doc_usage = "SPEC:TARGET ... [--json]"
    doc_description = (
        "Compares what the log keeps of the target's newest result with what its spec says now. Of what a target "
        "waits for, the whole chain is named. Builds nothing."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, None)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0, or 2 when there is no such target: an explanation is no judgement."""
        project = open_project()
        found = _explained(project, arguments)
        if options["json"]:
            screen.json({"format": 1, "targets": [item.to_dict() for item in found]})
        else:
            for number, item in enumerate(found):
                if number:
                    screen.line()
                for line in lines(item):
                    screen.text(line)
        keep_derived(project)
        return 0


def _explained(project: Project, names: Sequence[str]) -> list[Explanation]:
    from ingot.core.explain import Explainer

    try:
        chosen = select(project, names)
    except UsageError as error:
        gone = [name for name in names if name in project.index.latest and name not in project.nodes]
        if not gone:
            raise
        what = f"{gone[0]} is in no spec any more"
        raise UsageError("E-TARGET", what, hint=f"its results are kept: doit show {gone[0]}") from error
    # What becomes of a virtual target is decided by what is built from it, in any spec.
    whole = any(node.virtual for node in chosen)
    planned = project.plan(project.nodes.values() if whole else select(project, names, inputs=True))
    explainer = Explainer(project, planned)
    # What a target implies (the steps of a report) is explained when it is asked for by its own name.
    shown = [node for node in chosen if not node.hidden or node.id in names]
    return [_building(project, planned[node.id].key, explainer.explain(node.id)) for node in shown]


def _building(project: Project, key: str | None, item: Explanation) -> Explanation:
    """The same, or ``building`` while another process holds the lock of the key."""
    from ingot.core.locks import is_held

    held = item.state == "stale" and key is not None and is_held(project.store.root / "locks" / f"{key}.lock")
    return replace(item, state="building") if held else item


def lines(item: Explanation) -> list[str]:
    """An explanation as a person reads it."""
    name = item.node.id
    if item.state == "waiting":
        return [*_waiting(item), *_result(item.newest, "its newest result")]
    if item.state == "fresh":
        return _fresh(item)
    start = f"{name} is being built now by another doit" if item.state == "building" else f"{name} is {item.state}"
    back = [f"  doit materialize {name} writes it again"] if item.state == "evicted" else []
    return [*_caused(start, item.causes), *_result(item.newest, "its newest result"), *back]


def _caused(start: str, causes: Sequence[Cause]) -> list[str]:
    """One cause in the same line; several below it. Notes are indented further."""
    if len(causes) == 1:
        return [f"{start}: {causes[0]}", *_notes(causes[0])]
    found = [f"{start}, for {len(causes)} reasons:" if causes else start]
    for cause in causes:
        found += [f"  {cause}", *_notes(cause, "    ")]
    return found


def _notes(cause: Cause, indent: str = "  ") -> list[str]:
    return [f"{indent}{cause.note}"] if cause.note else []


def _waiting(item: Explanation) -> list[str]:
    from ingot.core.explain import chain_words

    name = item.node.id
    found: list[str] = []
    if len(item.roots) == 1:
        found += _root(f"{name} waits for {chain_words(item.roots[0].chain)}", item.roots[0])
    else:
        found.append(f"{name} waits for {len(item.roots)} targets:")
        for root in item.roots:
            found += [f"  {line}" for line in _root(chain_words(root.chain), root)]
    if item.causes:
        found += _caused("  besides, it is stale by itself", item.causes)
    return found


def _root(start: str, root: Root) -> list[str]:
    return _caused(f"{start}, which is {root.state}", root.causes)


def _fresh(item: Explanation) -> list[str]:
    if item.causes or item.newest is None:
        return _caused(f"{item.node.id} is fresh", item.causes)
    newest = item.newest
    took = duration_text(newest.receipt["timings"]["wall_s"])
    first = f"{item.node.id} is fresh since {when_text(newest.since)} ({_entry(newest.entry)})"
    if newest.selected:
        built = f"built {when_text(newest.receipt['timings']['finished'])} in {took} ({_entry(newest.receipt)})"
        return [f"{first}: an earlier result was taken again", f"  {built}{_as(item, newest)}", *_why_built(newest)]
    return [f"{first}: built in {took}", *_why_built(newest)]


def _as(item: Explanation, newest: Newest) -> str:
    return "" if newest.receipt["target"] == item.node.id else f" as {newest.receipt['target']}, of the same content"


def _why_built(newest: Newest) -> list[str]:
    return [f"  why it was built: {newest.why_built}"]


def _result(newest: Newest | None, title: str) -> list[str]:
    if newest is None:
        return []
    return [
        f"  {title}: {str(newest.receipt['digest'])[:12]}, since {when_text(newest.since)} ({_entry(newest.entry)})"
    ]


def _entry(place: Mapping[str, Any]) -> str:
    from ingot.core.lookup import place_text

    return f"entry {place_text(place)}"
