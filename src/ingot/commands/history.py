"""``doit history``: what the logs hold, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ingot import registry
from ingot.commands.base import IngotCommand, keep_derived
from ingot.commands.screen import Screen, duration_text, measured_text, size_text, when_text

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.project import Project
    from ingot.core.registry import Entry

Json = Mapping[str, Any]

#: In fewer columns digests and times taken are left out, so that the last column has room to say something.
_WIDE = 100
#: In fewer columns memory and size are left out too.
_WIDEST = 140


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
            screen.json([registry.described(entry, project) for entry in entries])
        else:
            _show(screen, project, entries)
        keep_derived(project)
        return 0


def _show(screen: Screen, project: Project, entries: Sequence[Entry]) -> None:
    rows = list(_rows(project, entries))
    if not rows:
        screen.line("no entries yet: nothing was built")
        return
    titles = ("when (UTC)", "what", "target", "digest", "took", "memory", "size", "why")
    width = _WIDEST if screen.width is None else screen.width
    left_out = (
        () if width >= _WIDEST else ("memory", "size") if width >= _WIDE else ("digest", "took", "memory", "size")
    )
    columns = [at for at, title in enumerate(titles) if title not in left_out]
    screen.table([titles[at] for at in columns], [[row[at] for at in columns] for row in rows])


def _rows(project: Project, entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    """One row an entry; all entries about a target are there, and what it is compared with may be about another."""
    known = _Known(project)
    for entry in entries:
        data = registry.described(entry, project)
        target = "" if data["target"] is None else str(data["target"])
        what = {"selected": "restored", "build": "build" if data.get("stored", True) else "streamed"}
        head = _when(entry.time), what.get(entry.type, entry.type), target, str(data["digest"])[:12]
        yield *head, *_measured(data), _why(entry, data, known)
        known.take(entry, data)


def _measured(data: Json) -> Iterator[str]:
    """Time, memory and size of a build, each as it was measured and as it had been predicted."""
    predicted = data.get("predicted") or {}
    for name, text in (("wall_s", duration_text), ("peak_anon_bytes", size_text), ("bytes", size_text)):
        yield measured_text(data.get(name), predicted.get(name), text)


def _when(time: str) -> str:
    return time[:16].replace("T", " ")


class _Known:
    """What is known when an entry comes: the result that its target had last, and the builds before it of any key."""

    def __init__(self, project: Project) -> None:
        from ingot.core.lookup import Lookup

        self._lookup = Lookup(project)
        self.last: dict[str, Json] = {}

    def take(self, entry: Entry, data: Json) -> None:
        """One entry more."""
        if entry.type == "build":
            from ingot.core.statement import receipt_of

            self.last[str(data["target"])] = receipt_of(entry.statement)
        elif entry.type == "accept":
            build = self.accepted(data)
            if build is not None:
                self.last[str(data["target"])] = {**build, **{name: data[name] for name in ("key", "key_parts")}}
        elif entry.type == "selected":
            again = self.selected(entry, data)
            if again is not None:
                self.last[str(data["target"])] = again

    def builds(self, entry: Entry, key: str) -> list[Json]:
        """The builds of a key before an entry, oldest first."""
        return list(self._lookup.builds_before(entry, key))

    def selected(self, entry: Entry, data: Json) -> Json | None:
        """The newest build of the result that an entry takes again."""
        found = [item for item in self.builds(entry, str(data.get("key"))) if item["digest"] == data["digest"]]
        return found[-1] if found else None

    def accepted(self, data: Json) -> Json | None:
        """The build that an ``accept`` entry takes."""
        place = data["build"]
        build = self._lookup.entry(str(place["origin"]), int(place["index"]))
        return None if build is None or build.type != "build" else self._lookup.receipt(build)


def _why(entry: Entry, data: Json, known: _Known) -> str:
    """What changed since the target's last entry; a decision's own words."""
    if entry.type == "build":
        return f"{_why_built(entry, known)}{_shared(data)}"
    if entry.type == "selected":
        from ingot.core.reasons import found_again

        receipt = known.selected(entry, data)
        return "found again" if receipt is None else found_again(receipt, str(data["target"])).detail
    if entry.type in ("gate-failed", "gate-warned"):
        return _gate(data)
    if entry.type == "origin":
        seen = len(data.get("seen", ()))
        return f"log {data['origin']} starts" + (f", having seen {seen} other{'s' * (seen != 1)}" if seen else "")
    if entry.type in ("promote", "rollback", "accept", "reproduced"):
        return _decided(entry, data, known)
    shown = ("origin", "index", "type", "target", "digest", "time", "key", "spec")
    return ", ".join(f"{name} {value}" for name, value in data.items() if name not in shown)


def _gate(data: Json) -> str:
    """What a gate found: the number, what it was compared with, and the limit."""
    limit = data.get("limit", {})
    sides = ", ".join(f"{side} {limit[side]:g}" for side in ("min", "max") if side in limit)
    bound = limit.get("bound", "value")
    end = f" ({bound} end of the interval)" if bound in ("lower", "upper") else ""
    compared, ends = data.get("compared"), data.get("interval")
    sign = "/" if "relative_to" in limit else "−"
    beside = f" {sign} {compared['name']}" if compared else ""
    interval = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else ""
    rule = f"{data['rule']}: " if data.get("rule") else ""
    undecided = ": not enough samples to say" if data.get("finding") == "undecided" else ""
    return f"{rule}{data.get('gate')}{beside} is {data.get('value'):.6g}{interval}{end}, gate: {sides}{undecided}"


def _shared(data: Json) -> str:
    """What a build had its pass, and so its time, in common with."""
    if not data.get("stored", True):
        return f"; into {', '.join(data['shared_with'])}" if data["shared_with"] else "; a scratch copy"
    return f"; in one pass with {', '.join(data['shared_with'])}" if data.get("shared_with") else ""


def _decided(entry: Entry, data: Json, known: _Known) -> str:
    """What a person decided or asked for, in words, with the reason that was given."""
    if entry.type == "reproduced":
        count = data["files_apart"]
        differs = f"gave {str(data['found'])[:12]}: {count} of its files differ{'s' * (count == 1)}"
        return f"built again beside it: {'the same bytes' if data['agrees'] else differs}"
    reason = f": {data['reason']}" if data.get("reason") else ""
    before = str(data["replaces"])[:12] if data.get("replaces") else "nothing"
    if entry.type == "promote":
        gates = len(data.get("gates", ()))
        passed = f", {gates} gate{'s' * (gates != 1)} passed" if gates else ""
        return f"active now (was {before}{passed}){reason}"
    if entry.type == "rollback":
        return f"active again (was {before}){reason}"
    build = known.accepted(data)
    differs = "" if build is None else "; ".join(_differences(data["key_parts"], build))
    return f"accepted under a new key{f' ({differs})' if differs else ''}{reason}"


def _differences(parts: Json, before: Json) -> Iterator[str]:
    from ingot.core.reasons import explain

    # Sources are named by the spec of today, which may differ: the log keeps their digests only.
    node = cast("Node", SimpleNamespace(sources=(), inputs={}))
    return (reason.detail for reason in explain(parts, before, node))


def _why_built(entry: Entry, known: _Known) -> str:
    from ingot.core.statement import receipt_of

    receipt = receipt_of(entry.statement)
    before, earlier = known.last.get(receipt["target"]), known.builds(entry, str(receipt["key"]))
    same = [item for item in earlier if item["digest"] == receipt["digest"]]
    if before is None:
        why = "first build"
    elif before["key"] == receipt["key"]:
        why = "built again"
    else:
        why = "; ".join(_differences(receipt["key_parts"], before))
    if same:
        return f"{why}: the same bytes as on {when_text(str(same[-1]['timings']['finished']))}"
    if earlier:
        return f"{why}: other bytes than on {when_text(str(earlier[-1]['timings']['finished']))}"
    if before is None:
        return why
    return f"{why}: {'the same bytes' if before['digest'] == receipt['digest'] else 'other bytes'}"
