"""The parts of a page that draw: quality, speed, training, data, lineage; and those that list: answers, history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ingot.core.standing import Standing
from ingot.view.page import charts, details, graph, html
from ingot.view.page.book import Entry, Score
from ingot.view.page.details import Curve
from ingot.view.page.facts import Page, Row
from ingot.view.page.figures import Figure, grid, section, word
from ingot.view.page.html import Child, Html, anchor, code, join, link, tag
from ingot.view.page.measures import interval, measure, written
from ingot.view.page.results import number

#: Metrics that are drawn against size, best first; so many at most.
_QUALITY = (
    "kl_divergence", "nll_difference", "bits_per_byte_difference", "perplexity", "bits_per_byte", "pattern_accuracy",
    "top1_agreement", "exact_match",
)  # fmt: skip
_CHARTS = 4
#: From so many candidates on, only the front is named in the chart; the others say their name when pointed at.
_NAMED = 8
_HISTORY = 40


def quality(page: Page) -> list[Figure]:
    """Quality against size, a chart a metric: which candidates no other beats in both."""
    wanted = [*page.headlines(), *_QUALITY]
    found = []
    for metric in dict.fromkeys(wanted):
        rows = [row for row in page.rows if metric in row.scores and "bytes" in row.scores]
        rows = [row for row in rows if not (row.is_reference and metric in ("nll_difference", "kl_divergence"))]
        if len(rows) > 1 and len(found) < _CHARTS and measure(metric).better:
            found.append(_quality(metric, rows))
    return found


def _quality(metric: str, rows: Sequence[Row]) -> Figure:
    front = pareto(metric, rows)
    points = [_point(metric, row, row in front, few=len(rows) <= _NAMED) for row in rows]
    better = "less" if measure(metric).better == "low" else "more"
    cells = [
        [row.name, number(row.scores["bytes"]), number(row.scores[metric]), "yes" if row in front else "no"]
        for row in rows
    ]
    note = f"{better} is better; the line joins what no other candidate beats in both; bars are 95 % intervals"
    title = f"{measure(metric).title} against size"
    titles = ["candidate", "size", measure(metric).title, "on the Pareto front"]
    return Figure(f"quality.{anchor(metric)}", title, note, charts.quality(metric, points), titles, cells, (1, 2))


def _point(metric: str, row: Row, front: bool, *, few: bool) -> dict[str, object]:  # noqa: FBT001  # a plain fact
    score = row.scores[metric]
    low, high = score.metric.get("interval") or (None, None)
    return {
        "name": row.name, "size": row.scores["bytes"].value, "value": score.value, "low": low, "high": high,
        "front": front, "reference": row.is_reference, "label": few,
    }  # fmt: skip


def pareto(metric: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats: none is at most as large and at least as good, and better in one of them."""
    sign = 1.0 if measure(metric).better == "low" else -1.0
    at = {row.digest: (row.scores["bytes"].value, sign * row.scores[metric].value) for row in rows}
    return [row for row in rows if not any(_beats(other, at[row.digest]) for other in at.values())]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def speed(page: Page) -> list[Figure]:
    """The time a token, where exports measured it, and the tokens a second that the report itself measured."""
    timed = [each for each in details.runtimes(page) if "token_p99_s" in each.scores and "token_p50_s" in each.scores]
    found = [_latency(timed)] if timed else []
    for metric in ("generation_tokens_per_second", "prompt_tokens_per_second"):
        rows = [row for row in page.rows if metric in row.scores]
        if rows:
            listed = [{"name": row.name, "value": row.scores[metric].value} for row in rows]
            cells = [[row.name, number(row.scores[metric])] for row in rows]
            spec = charts.speeds(metric, listed)
            title, titles = measure(metric).title, ["candidate", measure(metric).title]
            found.append(Figure(anchor(metric), title, "more is better", spec, titles, cells, (1,)))
    return found


def _latency(timed: Sequence[details.Runtime]) -> Figure:
    names = ("first_token_s", "token_p50_s", "token_p95_s", "token_p99_s")
    cells = [
        [each.candidate, each.name, *(number(each.scores[name]) if name in each.scores else "" for name in names)]
        for each in timed
    ]
    titles = ["candidate", "runtime", *(measure(name).title for name in names)]
    note = "measured when each export was built, on the machine that its entry names; less is better"
    return Figure("latency", "Time a token", note, charts.latency(timed), titles, cells, (2, 3, 4, 5))


def training(page: Page) -> tuple[list[Figure], list[Html]]:
    """The losses of everything that was trained, and what cannot be drawn because its artifact is not here."""
    found, missing = [], []
    for curve in details.curves(page):
        if isinstance(curve, Entry):
            missing.append(_not_here(curve, "its loss curve cannot be shown"))
        else:
            found.append(_loss(curve))
    return found, missing


def _not_here(entry: Entry, what: str) -> Html:
    said = word("warn" if entry.presence != "damaged" else "bad", f"artifact {entry.presence}")
    return tag("p", said, " ", link(f"#{entry.id}", code(entry.target)), f": {what}")


def _loss(curve: Curve) -> Figure:
    entry = curve.entry
    metrics = entry.receipt["metrics"]
    names = [name for name in sorted(metrics) if name.startswith(("eval_loss", "train_loss", "perplexity"))]
    cells = [[code(name), number(Score(name, metrics[name], entry)), str(metrics[name].get("n", ""))] for name in names]
    kept = f"; kept are the weights of step {curve.kept}" if curve.kept is not None else ""
    title = f"Loss of {entry.target.partition(':')[2]}"
    titles = ["metric", "value", "n"]
    return Figure(
        f"loss-{anchor(entry.digest[:12])}", title, f"by step{kept}", charts.loss(curve), titles, cells, (1, 2)
    )


def data(page: Page) -> list[Figure]:
    """What became of the documents of each data set."""
    found = []
    for funnel in details.funnels(page):
        name = funnel.entry.target.partition(":")[2]
        cells = [[words, number(score)] for words, score in (*funnel.steps, *funnel.sides)]
        title = f"Documents of {name}"
        note = "what each sieve took out, and how the rest was divided"
        figure = anchor("funnel", funnel.entry.digest[:12])
        found.append(Figure(figure, title, note, charts.funnel(funnel), ["sieve", "documents"], cells, (1,)))
    return found


def calibration(page: Page) -> list[Figure]:
    """How far confidence can be believed, where a target measured it."""
    found = []
    for each in details.reliabilities(page):
        cells = [
            [name, f"{sure:.3f}", f"{right:.3f}", f"{n:,}"]
            for name, (_, bins) in each.panels.items() for sure, right, n in bins
        ]  # fmt: skip
        titles = ["panel", "how sure", "how often right", "tokens"]
        note = "on the dashed line, confidence is what it says"
        figure = anchor("reliability", each.entry.digest[:12])
        spec = charts.reliability(each)
        found.append(Figure(figure, f"Reliability of {each.model}", note, spec, titles, cells, (1, 2, 3)))
    return found


def answers(page: Page) -> Html | None:
    """Held-out questions, and what every candidate answered."""
    found = details.samples(page)
    if not found:
        return None
    told = tag(
        "p",
        "Answers of all candidates to the same held-out questions; those first on which they are not equally right.",
    )
    return section("answers", "Answers side by side", told, [_sample(item) for item in found])


def _sample(sample: details.Sample) -> Html:
    """One question; candidates that answered the same stand together."""
    rows: list[Sequence[Child]] = []
    if sample.expected:
        rows.append(["data set", tag("pre", sample.expected, class_="answer", dir="auto"), ""])
    grouped: dict[tuple[str, bool | None], list[str]] = {}
    for answer in sample.answers:
        grouped.setdefault((answer.text, answer.right), []).append(answer.row.name)
    for (said, right), names in grouped.items():
        reading = {True: word("ok", "right"), False: word("bad", "not right"), None: ""}[right]
        rows.append([", ".join(names), tag("pre", said, class_="answer", dir="auto"), reading])
    title = tag("h3", "Question ", code(sample.id))
    question = sample.prompt or "its text is not here: the data set's artifact is missing"
    body = html.table(f"Answers to {sample.id}", ["who", "answer", "reading"], rows)
    return join(title, tag("pre", question, class_="answer", dir="auto"), tag("div", body, class_="answers"))


def lineage(page: Page) -> Html:
    """The graph, and the same as a table."""
    hrefs = {node.digest: f"#{node.entry.id}" for node in page.lineage.nodes.values() if node.entry is not None}
    picture = tag(
        "div",
        graph.draw(page.lineage, hrefs),
        class_="graph scroll",
        tabindex=0,
        role="region",
        aria_label="Lineage graph",
    )
    rows = [_node(page, digest, hrefs) for digest in page.lineage.nodes]
    body = html.table(
        "Lineage: every result and what it was built from", ["result", "kind", "digest", "built from", "state"], rows
    )
    return section("lineage", "Lineage", picture, tag("details", tag("summary", "Lineage as a table"), body))


def _node(page: Page, digest: str, hrefs: dict[str, str]) -> Sequence[Child]:
    node = page.lineage.nodes[digest]
    name = link(hrefs[digest], code(node.name)) if digest in hrefs else code(node.name)
    sources = [edge for edge in page.lineage.edges if edge.goal == digest]
    made = "; ".join(f"{edge.role}: {page.lineage.nodes[edge.source].name}" for edge in sources)
    state = "its build is in no log" if node.entry is None else node.entry.presence
    return [name, node.kind, code(digest), made, state]


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
    return join(code(digest[:12]), " the same" if digest == measured else word("warn", "another"))


def _event(entry: object) -> Iterator[Child]:
    from ingot.core.lookup import place_text
    from ingot.core.statement import decision_of, receipt_of, time_of

    statement = entry.statement  # type: ignore[attr-defined]  # an Entry of the registry
    found = receipt_of(statement) if entry.type == "build" else decision_of(statement)  # type: ignore[attr-defined]
    yield code(place_text({"origin": entry.origin, "index": entry.index}))  # type: ignore[attr-defined]
    yield str(entry.type)  # type: ignore[attr-defined]
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
        if len({(point["name"], point["digest"]) for point in points}) > len({point["name"] for point in points}):
            cells = [
                [str(point["name"]), str(point["time"])[:19], written(metric, point["value"]), code(point["digest"])]
                for point in points
            ]
            title = f"{measure(metric).title} over time"
            titles = ["candidate", "measured", measure(metric).title, "measurement"]
            yield Figure("over-time", title, "", charts.history(metric, points), titles, cells, (2,))
            return


def past(lookup: object, target: str, metric: str, name: str) -> list[dict[str, object]]:
    """What every recorded result of a target measured, oldest first."""
    found = []
    for entry in lookup.about(target):  # type: ignore[attr-defined]  # a Lookup
        receipt = lookup.result_of(entry) if entry.type == "build" else None  # type: ignore[attr-defined]
        if receipt is not None and metric in receipt["metrics"]:
            value = receipt["metrics"][metric]["value"]
            found.append(
                {"name": name, "time": receipt["timings"]["finished"], "value": value, "digest": receipt["digest"][:12]}
            )
    return found


def methods(page: Page) -> Html:
    """How each metric was measured, in the words of the log; rows that were measured differently are told apart."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in page.rows:
        for name, score in row.scores.items():
            found.setdefault((name, str(score.metric["method"])), []).append(row.name)
    rows = [[code(name), ", ".join(names), how] for (name, how), names in sorted(found.items())]
    body = html.table("How each metric was measured", ["metric", "candidates", "method"], rows)
    settings = [[code(name), str(value)] for name, value in sorted(page.report.get("settings", {}).items())]
    given = html.table("Settings of the report", ["setting", "value"], settings) if settings else None
    return section("methods", "How it was measured", body, given)


def drawn(name: str, title: str, figures: Sequence[Figure], more: Sequence[Html] = ()) -> Html | None:
    """A section of charts; None where there is nothing to draw."""
    if not figures and not more:
        return None
    body = grid(figures) if len(figures) > 1 else join([figure.html() for figure in figures])
    return section(name, title, body, *more)


def tasks(page: Page) -> Html | None:
    """All that each task measured: a row a candidate and metric."""
    rows: list[Sequence[Child]] = []
    for row in page.rows:
        for task in row.tasks:
            for name, score in sorted(task.scores.items()):
                count = score.metric.get("n")
                rows.append(
                    [
                        task.name,
                        task.kind,
                        row.name,
                        code(name),
                        number(score),
                        "" if count is None else f"{count:,}",
                        interval(name, score.metric),
                    ]
                )
            rows += [
                [task.name, task.kind, row.name, code(name), "not measured", "", why]
                for name, why in sorted(task.not_measured.items())
            ]
    if not rows:
        return None
    rows = [[cells[0], *cells[1:5], cells[5], cells[6]] for cells in rows]
    titles = ["task", "kind", "candidate", "metric", "value", "n", "95 % interval, or why not"]
    return section("tasks", "Tasks", html.table("Everything that tasks measured", titles, rows, numbers=(4, 5)))
