"""What stands for the candidates of a report, and what happened before: newest, active, last good, over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ingot.core.lookup import Lookup, place_text
from ingot.core.registry import Entry as LogEntry
from ingot.core.standing import Standing
from ingot.core.statement import decision_of
from ingot.view.page import charts, html
from ingot.view.page.facts import Page, Row
from ingot.view.page.figures import Figure, section, word
from ingot.view.page.html import Child, Html, anchor, code, join
from ingot.view.page.measures import measure, written

_HISTORY = 40
#: Metrics that are drawn over time, best first.
_TRACKED = ("kl_divergence", "perplexity", "pattern_accuracy", "bytes")
#: The columns of what ``told`` gives.
TOLD = ("log entry", "what", "when (UTC)", "digest", "why")


def standing(page: Page) -> Html:
    """What stands for each candidate: latest, active, last good; and what happened to this report."""
    folds = Standing(page.book.project, page.book.lookup)
    rows = [_stands(folds, f"{page.spec}:{name}", row) for row in page.rows for name in row.names]
    titles = ["candidate", "this report measured", "newest", "active", "last good"]
    body = html.table("Where the candidates stand", titles, rows)
    events = [told(entry) for entry in page.book.lookup.about(page.target)[-_HISTORY:]]
    past = html.table("Entries about this report, oldest first", TOLD, events)
    figures = over_time(page.book.lookup, page.target, [name for row in page.rows for name in row.names])
    return section("history", "History", body, [figure.html() for figure in islice(figures, 1)], past)


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


def told(entry: LogEntry) -> list[Child]:
    """An entry of the log as a row of a table: where it is, what, when, of which digest, and why."""
    digest = str(next(iter(entry.statement["subject"][0]["digest"].values())))
    fields = {} if entry.type == "build" else decision_of(entry.statement)
    return [
        code(place_text({"origin": entry.origin, "index": entry.index})),
        word("bad", "gate-failed") if entry.type == "gate-failed" else str(entry.type),
        _moment(str(entry.time)),
        code(digest[:12]),
        str(fields.get("reason") or fields.get("gate") or ""),
    ]


def _moment(time: str) -> str:
    return time[:19].replace("T", " ")


def over_time(lookup: Lookup, report: str, names: Sequence[str]) -> Iterator[Figure]:
    """A figure of each metric that was measured of more than one result of some candidate, the best metric first."""
    for metric in _TRACKED:
        points = [point for name in names for point in _past(lookup, f"{report}.{name}", metric, name)]
        if not _again(points):
            continue
        cells = [
            [str(point["name"]), _moment(str(point["time"])), written(metric, point["value"]), code(point["digest"])]
            for point in points
        ]
        title = f"{measure(metric).title} over time, {report.partition(':')[2]}"
        titles = ["candidate", "measured (UTC)", measure(metric).title, "measurement"]
        note = "every measurement that the logs hold"
        yield Figure(anchor("time", report, metric), title, note, charts.history(metric, points), titles, cells, (2,))


def _again(points: Sequence[dict[str, Any]]) -> bool:
    """Whether something was measured more than once: else time says nothing."""
    return len({(point["name"], point["digest"]) for point in points}) > len({point["name"] for point in points})


def _past(lookup: Lookup, target: str, metric: str, name: str) -> list[dict[str, Any]]:
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
