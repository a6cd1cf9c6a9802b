"""``doit history``: what the logs hold, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ingot import registry
from ingot.commands.base import IngotCommand, keep_derived
from ingot.commands.screen import Screen, duration_text

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.registry import Entry

Json = Mapping[str, Any]

#: In fewer columns digests and times taken are left out, so that the last column has room to say something.
_WIDE = 100


class History(IngotCommand):
    """Print entries."""

    name = "history"
    doc_purpose = "show the entries of the logs, oldest first"
    doc_usage = "[SPEC[:TARGET]] [--json]"
    doc_description = "Reads the log only. A target with a matrix means all its instances."
    arguments: ClassVar[tuple[int, int | None]] = (0, 1)

    def run(self, screen: Screen, options: Json, arguments: Sequence[str]) -> int:
        """0, or 2 when nothing is known by that name."""
        project = registry.open_log()
        entries = registry.entries_about(project, arguments[0] if arguments else None)
        if options["json"]:
            screen.json([registry.described(entry) for entry in entries])
        else:
            _show(screen, entries)
        keep_derived(project)
        return 0


def _show(screen: Screen, entries: Sequence[Entry]) -> None:
    rows = list(_rows(entries))
    if not rows:
        screen.line("no entries yet: nothing was built")
        return
    titles = ("when (UTC)", "what", "target", "digest", "took", "why")
    if screen.width is None or screen.width >= _WIDE:
        screen.table(titles, rows, right=(4,))
    else:
        screen.table((*titles[:3], titles[5]), [(*row[:3], row[5]) for row in rows])


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    previous: dict[str, Json] = {}
    for entry in entries:
        data = registry.described(entry)
        target = "" if data["target"] is None else str(data["target"])
        took = duration_text(data["wall_s"]) if "wall_s" in data else ""
        yield (
            entry.time[:16].replace("T", " "),
            entry.type,
            target,
            str(data["digest"])[:12],
            took,
            _why(entry, data, previous),
        )


def _why(entry: Entry, data: Json, previous: dict[str, Json]) -> str:
    """What changed since the target's last entry; a decision's own words."""
    if entry.type == "build":
        return _why_built(entry, previous)
    if entry.type == "selected":
        return "this result was at hand"
    if entry.type == "gate-failed":
        limit = data.get("limit", {})
        sides = ", ".join(f"{side} {limit[side]:g}" for side in ("min", "max") if side in limit)
        return f"{data.get('gate')} is {data.get('value'):.6g}, gate: {sides}"
    if entry.type == "origin":
        seen = len(data.get("seen", ()))
        return f"log {data['origin']} starts" + (f", having seen {seen} other{'s' * (seen != 1)}" if seen else "")
    known = ("origin", "index", "type", "target", "digest", "time", "key", "spec")
    return ", ".join(f"{name} {value}" for name, value in data.items() if name not in known)


def _why_built(entry: Entry, previous: dict[str, Json]) -> str:
    from ingot.core.reasons import explain
    from ingot.core.statement import receipt_of

    receipt = receipt_of(entry.statement)
    before = previous.get(receipt["target"])
    previous[receipt["target"]] = receipt
    if before is None:
        return "first build"
    if before["key"] == receipt["key"]:
        why = "built again"
    else:
        # Sources are named by the spec of today, which may differ: the log keeps their digests only.
        node = cast("Node", SimpleNamespace(sources=()))
        why = "; ".join(reason.detail for reason in explain(receipt["key_parts"], before, node))
    same = before["digest"] == receipt["digest"]
    return f"{why}: {'the same bytes' if same else 'other bytes'}"
