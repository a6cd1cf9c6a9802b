"""``doit query``: the measured variants that satisfy what is asked, from the logs alone; measures nothing."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_readable, value
from ingot.commands.screen import Screen, number_text, plural
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.project import Project
    from ingot.core.query import Answer, Chosen, Row
    from ingot.core.query_text import Query as Asked
    from ingot.core.scan import Scan
    from ingot.core.variants import Variant

#: Variants that were not measured, and are named; the rest is counted.
_NAMED = 12
_DASH = "–"


class Query(IngotCommand):
    """Answer from the registry."""

    name = "query"
    doc_purpose = "find measured variants: smallest where kl_divergence <= 0.05"
    doc_usage = (
        "[QUERY] [--where …] [--order METRIC] [--limit N] [--columns A,B] [--pareto A,B] [--spec S] [--all] [--json]"
    )
    doc_description = (
        "QUERY is one argument: [smallest | largest | fastest | cheapest | best METRIC] [where METRIC <= 0.05 and "
        "METRIC >= 20] [order by METRIC [asc|desc]] [limit N]. Exit code 0: something satisfies it; 1: nothing does."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, 1)
    cmd_options = (
        value("where", "conditions joined by 'and', besides those of QUERY"),
        value("order", "the metric to order by, the better value first; METRIC:asc and METRIC:desc say which"),
        value("limit", "how many variants are shown"),
        value("columns", "metrics to show, with commas between"),
        value("pareto", "metrics of the Pareto front, with commas between"),
        value("spec", "variants of this spec only"),
        flag("all", "every result that the logs have, not the newest of each target alone"),
        JSON_OPTION,
    )

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 1 when no variant satisfies the query."""
        from ingot.core import query, query_text, variants
        from ingot.core.scan import Scan

        asked = self._asked(options, arguments)
        columns = query_text.names(options["columns"], "--columns") if options["columns"] is not None else ()
        wanted = query_text.names(options["pareto"], "--pareto") if options["pareto"] is not None else None
        project = open_readable()
        _require_spec(project, options["spec"])
        lookup = Scan(project)
        # A long log is a million small values, none of them rubbish: looking for some would take most of the time.
        gc.disable()
        try:
            found = variants.read(project, lookup, every=options["all"], spec=options["spec"])
            asked = _resolved(asked, found)
            front = None if wanted is None else query.front_of([query.resolved(name, found) for name in wanted])
            shown = [query.resolved(name, found) for name in columns]
            answer = query.answer(asked, found, shown, front)
        finally:
            gc.enable()
        if options["json"]:
            screen.json({"format": 1, "query": _query_json(asked)} | query.to_json(answer, _reasons(lookup, answer)))
        else:
            _show(screen, lookup, answer, len(found))
        keep_derived(project)
        return 0 if answer.rows else 1

    def _asked(self, options: Mapping[str, Any], arguments: Sequence[str]) -> Asked:
        from ingot.core import query_text

        found = query_text.parse(arguments[0] if arguments else "")
        if options["where"] is not None:
            found = replace(found, conditions=(*found.conditions, *query_text.conditions(options["where"])))
        if options["order"] is not None:
            found = replace(found, order=query_text.order_of(options["order"]))
        if options["limit"] is not None:
            if not str(options["limit"]).isdecimal() or int(options["limit"]) < 1:
                raise self._usage(f"--limit is a count of at least 1, not {options['limit']!r}")
            found = replace(found, limit=int(options["limit"]))
        return found


def _require_spec(project: Project, spec: str | None) -> None:
    known = {name.partition(":")[0] for name in project.index.latest} | set(project.graphs)
    if spec is not None and spec not in known:
        from ingot.core.names import suggestion

        raise UsageError("E-TARGET", f"there is no spec {spec!r}", hint=suggestion(spec, known))


def _resolved(asked: Asked, found: Sequence[Variant]) -> Asked:
    """The query with the names of metrics as the registry has them."""
    from ingot.core import query

    conditions = tuple(replace(each, name=query.resolved(each.name, found)) for each in asked.conditions)
    order = asked.order and replace(asked.order, name=query.resolved(asked.order.name, found))
    if order is not None and order.name in ("kind", "spec", "target"):
        raise UsageError("E-QUERY", f"variants are ordered by a metric, and {order.name} is none")
    return replace(asked, conditions=conditions, order=order)


def _query_json(asked: Asked) -> dict[str, Any]:
    order = None if asked.order is None else {"metric": asked.order.name, "descending": asked.order.descending}
    return {"where": [each.to_dict() for each in asked.conditions], "order": order, "limit": asked.limit}


def _show(screen: Screen, lookup: Scan, answer: Answer, count: int) -> None:
    notes: list[str] = []
    if answer.rows:
        titles = ["variant", *answer.columns, *(["Pareto"] if answer.front else []), "from"]
        rows = [_cells(answer, row, notes) for row in answer.rows]
        screen.table(titles, rows, right=range(1, 1 + len(answer.columns)))
    for number, note in enumerate(notes, start=1):
        screen.text(f"[{number}] {note}")
    if answer.front and answer.rows:
        doubt = "; ?: a number is missing or does not compare" if any(row.front is None for row in answer.rows) else ""
        screen.text(f"Pareto front (*) of {', '.join(item.name for item in answer.front)}{doubt}")
    if not answer.rows:
        screen.line(
            f"none of {plural(count, 'variant')} satisfies that" if count else "no variant was built or measured yet"
        )
    if answer.more:
        screen.line(f"and {answer.more} more")
    _show_lacking(screen, lookup, answer)


def _show_lacking(screen: Screen, lookup: Scan, answer: Answer) -> None:
    """What was left out because it was not measured."""
    reasons = _reasons(lookup, answer, most=_NAMED)
    for item in answer.lacking[:_NAMED]:
        why = reasons.get((item.variant.digest, item.metric))
        screen.text(f"not measured: {_title(item.variant)}: {item.metric}{f' ({why})' if why else ''}")
    if len(answer.lacking) > _NAMED:
        screen.line(f"not measured: {len(answer.lacking) - _NAMED} more (--json lists all)")


def _title(variant: Variant) -> str:
    return ", ".join(variant.targets)


def _cells(answer: Answer, row: Row, notes: list[str]) -> list[str]:
    values = [row.values.get(name) for name in answer.columns]
    cells = [_DASH if chosen is None else _number_cell(chosen, notes) for chosen in values]
    front = [{True: "*", False: "", None: "?"}[row.front]] if answer.front else []
    return [_title(row.variant), *cells, *front, _places(answer, row)]


def _number_cell(chosen: Chosen, notes: list[str]) -> str:
    text = number_text(chosen.number.value)
    if not chosen.differs:
        return text
    note = "measured otherwise: " + "; ".join(_words(*each) for each in chosen.differs)
    if note not in notes:
        notes.append(note)
    return f"{text} [{notes.index(note) + 1}]"


def _words(what: str, here: str, there: str) -> str:
    if what in ("data", "reference"):
        return f"other {what} ({_short(here)} instead of {_short(there)})"
    return f"{what} {here} instead of {there}"


def _short(text: str) -> str:
    """Digests by their first twelve digits."""
    import re

    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", text)


def _places(answer: Answer, row: Row) -> str:
    """The entries from which the numbers are; what is in which, where there are several."""
    from ingot.core.lookup import place_text

    found: dict[str, list[str]] = {}
    for name in answer.columns:
        if name in row.values:
            number = row.values[name].number
            found.setdefault(place_text({"origin": number.origin, "index": number.index}), []).append(name)
    if len(found) < 2:
        return "".join(found)
    return "; ".join(f"{place} ({', '.join(names)})" for place, names in found.items())


def _reasons(lookup: Scan, answer: Answer, most: int | None = None) -> dict[tuple[str, str], str | None]:
    """Why what is lacking was not measured, in the words of what tried to."""
    from ingot.core.waterfall import reasons_of

    found: dict[tuple[str, str], str | None] = {}
    for item in answer.lacking[:most]:
        task, _, name = item.metric.rpartition(".")
        receipts = [receipt for each, receipt in item.variant.measured_by if each == task]
        words = (reasons_of(lookup.project, lookup.whole(receipt)).get(name) for receipt in reversed(receipts))
        by_itself = "the others are compared with it" if item.is_reference else None
        found[item.variant.digest, item.metric] = next((word for word in words if word), by_itself)
    return found
