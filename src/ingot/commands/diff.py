"""``doit diff``: two results side by side: what they depend on, their files, their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import IngotCommand, keep_derived, open_readable
from ingot.commands.screen import Screen, duration_text, number_text, size_text
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.changes import Change
    from ingot.core.compare import Comparison, MetricPair, Subject
    from ingot.core.project import Project
    from ingot.core.spec_places import SpecPlaces

_Row = tuple[str, ...]


class Diff(IngotCommand):
    """Compare two results."""

    name = "diff"
    doc_purpose = "compare two results: parameters, inputs, files, metrics"
    doc_usage = "A B [--json]"
    doc_description = (
        "A and B are targets (spec:target), digests (8 or more hex digits), entries (ORIGIN/INDEX, as doit why "
        "prints them) or files that doit show --json wrote, here or in another checkout. Of two targets, "
        "what their specs say now is compared too. Exit code: 0 equal, 1 different; where and how fast something "
        "was built makes no difference."
    )
    arguments: ClassVar[tuple[int, int | None]] = (2, 2)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0 equal, 1 different, 2 when a side means nothing, 3 when a file is no export."""
        from ingot.core.compare import compare
        from ingot.core.subjects import Subjects

        project = _project()
        subjects = Subjects(project)
        one, other = (subjects.resolve(name) for name in arguments)
        found = compare(one, other, subjects.find)
        if options["json"]:
            screen.json(_to_json(one, other, found))
        else:
            _show(screen, project, (one, other), found)
        if project is not None:
            keep_derived(project)
        return 0 if found.equal else 1


def _project() -> Project | None:
    """The project, without its specs where they are bad; None outside one, where files can still be compared."""
    try:
        return open_readable()
    except UsageError as error:
        if error.code != "E-PROJECT":
            raise
        return None


def _to_json(one: Subject, other: Subject, found: Comparison) -> dict[str, Any]:
    parts: dict[str, Any] = {"format": 1, "equal": found.equal, "a": one.to_dict(), "b": other.to_dict()}
    for name in ("spec", "parts", "inputs", "files", "metrics", "environment", "timings"):
        parts[name] = [item.to_dict() for item in getattr(found, name)]
    return parts


def _show(screen: Screen, project: Project | None, sides: tuple[Subject, Subject], found: Comparison) -> None:
    one, other = sides
    screen.table(("", ""), [("A", f"{one.name}: {one.title}"), ("B", f"{other.name}: {other.title}")])
    pair = ("", "A", "B")
    for title, titles, rows, right in (
        ("spec, as it is now", (*pair, "where"), list(_spec(project, sides, found)), ()),
        ("what the results depend on", pair, list(_parts(found)), ()),
        ("inputs", ("role", "A", "B", "difference"), list(_inputs(found)), ()),
        ("files", ("", "path", "A", "B"), list(_files(found)), (2, 3)),
        ("metrics", ("name", "A", "B", "B - A", "unit"), list(_metrics(found)), (1, 2, 3)),
        ("built in another environment (no difference of the results)", pair, list(_facts(found.environment)), ()),
        ("measured while building (no difference of the results)", pair, list(_facts(found.timings)), (1, 2)),
    ):
        if rows:
            screen.line()
            screen.line(f"{title}:")
            screen.table(titles, rows, right)
    screen.line()
    screen.line(_verdict(sides, found))


def _verdict(sides: tuple[Subject, Subject], found: Comparison) -> str:
    """One sentence: what is equal and what is not."""
    one, other = (side.receipt for side in sides)
    if one is None or other is None:
        known = [side.name for side in sides if side.parts is None]
        if known:
            return f"{' and '.join(known)}: never built, so only specs were compared: " + _equal_word(found)
        return f"only key parts were compared: {_equal_word(found)}"
    digests = one["digest"] == other["digest"]
    keys = one["key"] == other["key"]
    if found.equal:
        return "equal: the same key, the same bytes, the same metrics"
    if digests:
        return "different, and the bytes are the same" if not keys else "the same key and bytes; see what differs above"
    word = str(one.get("reproducibility", "unknown")).replace("_", " ")
    return f"the same key gave other bytes: it is {word} with these parameters" if keys else "different: other bytes"


def _equal_word(found: Comparison) -> str:
    return "equal" if found.equal else "different"


def _spec(project: Project | None, sides: tuple[Subject, Subject], found: Comparison) -> Iterator[_Row]:
    from ingot.core.changes import pair_text
    from ingot.core.spec_places import SpecPlaces

    if not found.spec or project is None:
        return
    places = SpecPlaces(project.root, {name: graph.file for name, graph in project.graphs.items()})
    for change in found.spec:
        yield change.name, *pair_text(change.before, change.after), _where(places, sides, change)


def _where(places: SpecPlaces, sides: tuple[Subject, Subject], change: Change) -> str:
    """The lines of both sides, once where they are the same; that of a side which does not set it says so."""
    spots = []
    for side in sides:
        assert side.node is not None
        spot = places.seed(side.node) if change.path == ("seed",) else places.param(side.node, change.path)
        spots.append("" if spot is None else f"{spot}{'' if spot.written else ' (not set)'}")
    return " | ".join(dict.fromkeys(spots))


def _parts(found: Comparison) -> Iterator[_Row]:
    """The key parts that differ, less what other sections already say."""
    from ingot.core.changes import pair_text

    said = {(change.name, *pair_text(change.before, change.after)) for change in found.spec}
    for change in found.parts:
        if change.code == "input_changed" and found.inputs:
            continue
        row = (change.name, *pair_text(change.before, change.after))
        if row not in said:
            prefix = {"tool_changed": "tool ", "input_changed": "input "}.get(change.code, "")
            yield f"{prefix}{row[0]}", *row[1:]


def _inputs(found: Comparison) -> Iterator[_Row]:
    for change in found.inputs:
        sides = ["" if side is None else f"{side.target} {side.digest[:12]}" for side in (change.before, change.after)]
        yield change.role, *sides, change.content or ("" if any(sides) else "another order")


def _files(found: Comparison) -> Iterator[_Row]:
    for file in found.files:
        sizes = ["" if size is None else size_text(size) for size in (file.before, file.after)]
        if file.before is not None and file.after is not None and sizes[0] == sizes[1] and file.before != file.after:
            sizes = [f"{size:,} B" for size in (file.before, file.after)]
        yield file.what, file.path, *sizes


def _metrics(found: Comparison) -> Iterator[_Row]:
    for pair in found.metrics:
        known = pair.after or pair.before
        assert known is not None
        unit = "" if known["unit"] == "1" else str(known["unit"])
        yield pair.name, _metric(pair.before), _metric(pair.after), _difference(pair), unit


def _metric(metric: Mapping[str, Any] | None) -> str:
    """A value with its 95 % interval, where it has one."""
    if metric is None:
        return "–"
    interval = metric.get("interval")
    shown = f" [{number_text(interval[0])}, {number_text(interval[1])}]" if interval else ""
    return f"{number_text(metric['value'])}{shown}"


def _difference(pair: MetricPair) -> str:
    difference = pair.difference
    if pair.equal:
        return "="
    if difference is None or pair.before is None:
        return ""
    sign = "+" if difference > 0 else ""
    base = pair.before["value"]
    share = f" ({sign}{100 * difference / abs(base):.3g} %)" if base and difference else ""
    return f"{sign}{number_text(difference)}{share}"


def _facts(changes: Sequence[Change]) -> Iterator[_Row]:
    for change in changes:
        yield change.name, _fact(change.name, change.before), _fact(change.name, change.after)


def _fact(name: str, value: object) -> str:
    from ingot.core.changes import value_text

    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_bytes"):
            return size_text(value)
        if name.endswith("_s"):
            return duration_text(value)
    if value is None:
        return "not known"
    return str(value)[:12] if name == "git commit" else value_text(value)
