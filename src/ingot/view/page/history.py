"""What stands for the candidates of a report, and what happened before: newest, active, last good, over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ingot.core.lookup import Lookup, place_text
from ingot.core.registry import Entry as LogEntry
from ingot.core.standing import Standing
from ingot.core.statement import decision_of, receipt_of, time_of
from ingot.view.page import charts, html
from ingot.view.page.facts import Page, Row
from ingot.view.page.figures import Figure, section, word
from ingot.view.page.html import Child, Html, code, join
from ingot.view.page.measures import measure, written

_HISTORY = 40


def standing(page: Page) -> Html:
    """What stands for each candidate: latest, active, last good; and what happened to this report."""
    folds = Standing(page.book.project, page.book.lookup)
    rows = [_stands(folds, f"{page.spec}:{name}", row) for row in page.rows for name in row.names]
    titles = ["candidate", "this report measured", "newest", "active", "last good"]
    body = html.table("Where the candidates stand", titles, rows)
    events = [list(_event(entry)) for entry in page.book.lookup.about(page.target)[-_HISTORY:]]
    past = html.table("Entries about this report, oldest first", ["log entry", "what", "when", "digest"], events)
    return section("history", "History", body, [figure.html() for figure in _over_time(page)], past)


def _stands(folds: Standing, target: str, row: Row) -> Sequence[Child]:
    newest = folds.lookup.newest(target)
    active, good = folds.active(target), folds.last_good(target)
    latest = "" if newest is None else _same(str(newest["digest"]), row.digest)
    promoted = "nothing was promoted" if active is None else _same(active.digest, row.digest)
    return [
        target,
        code(row.digest[:12]),
        latest,
        promoted,
        "none" if good is None else _same(str(good["digest"]), row.digest),
    ]


def _same(digest: str, measured: str) -> Html:
    return join(code(digest[:12]), " ", "the same" if digest == measured else word("warn", "another"))


def _event(entry: LogEntry) -> Iterator[Child]:
    statement = entry.statement
    found = receipt_of(statement) if entry.type == "build" else decision_of(statement)
    yield code(place_text({"origin": entry.origin, "index": entry.index}))
    yield str(entry.type)
    yield time_of(statement)[:19].replace("T", " ")
    yield code(str(found["digest"])[:12])


def _over_time(page: Page) -> Iterator[Figure]:
    """The first metric that was measured of more than one result of some candidate."""
    for metric in ("kl_divergence", "perplexity", "pattern_accuracy", "bytes"):
        points = [
            point
            for row in page.rows
            for name in row.names
            for point in past(page.book.lookup, f"{page.target}.{name}", metric, name)
        ]
        if again(points):
            cells = [
                [str(point["name"]), str(point["time"])[:19], written(metric, point["value"]), code(point["digest"])]
                for point in points
            ]
            title = f"{measure(metric).title} over time"
            titles = ["candidate", "measured", measure(metric).title, "measurement"]
            yield Figure("over-time", title, "", charts.history(metric, points), titles, cells, (2,))
            return


def again(points: Sequence[dict[str, Any]]) -> bool:
    """Whether something was measured more than once: else time says nothing."""
    return len({(point["name"], point["digest"]) for point in points}) > len({point["name"] for point in points})


def past(lookup: Lookup, target: str, metric: str, name: str) -> list[dict[str, Any]]:
    """What every recorded result of a target measured, oldest first."""
    found = []
    for entry in lookup.about(target):
        receipt = lookup.result_of(entry) if entry.type == "build" else None
        if receipt is not None and metric in receipt["metrics"]:
            value = receipt["metrics"][metric]["value"]
            found.append(
                {"name": name, "time": receipt["timings"]["finished"], "value": value, "digest": receipt["digest"][:12]}
            )
    return found
