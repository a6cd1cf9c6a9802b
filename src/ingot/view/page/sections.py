"""The parts of a page that draw: quality against size, speed, training, data, calibration, lineage."""

from __future__ import annotations

from collections.abc import Sequence

from ingot.view.page import asked, charts, details, graph, html, making
from ingot.view.page.book import Entry, Score
from ingot.view.page.details import Curve
from ingot.view.page.facts import Page, Row, Task
from ingot.view.page.figures import Figure, grid, section, word
from ingot.view.page.html import Child, Html, anchor, code, join, link, tag
from ingot.view.page.measures import measure, written
from ingot.view.page.results import number

#: Metrics that are drawn against size, best first; so many at most.
_QUALITY = (
    "kl_divergence", "nll_difference", "bits_per_byte_difference", "perplexity", "bits_per_byte", "pattern_accuracy",
    "top1_agreement", "exact_match",
)  # fmt: skip
_CHARTS = 4
#: From so many candidates on, only the front is named in the chart; the others say their name when pointed at.
_NAMED = 8


def quality(page: Page) -> list[Figure]:
    """Quality against size, a chart a metric: which candidates no other beats in both."""
    wanted = [*page.headlines(), *_QUALITY]
    found: list[Figure] = []
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
            spec = making.speeds(metric, listed)
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
    return Figure("latency", "Time a token", note, making.latency(timed), titles, cells, (2, 3, 4, 5))


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
        f"loss-{anchor(entry.digest[:12])}", title, f"by step{kept}", making.loss(curve), titles, cells, (1, 2)
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
        found.append(Figure(figure, title, note, making.funnel(funnel), ["sieve", "documents"], cells, (1,)))
    return found


def calibration(page: Page) -> list[Figure]:
    """How far confidence can be believed, where a target measured it."""
    found = []
    for each in details.reliabilities(page):
        cells = [
            [name, f"{sure:.3f}", f"{right:.3f}", f"{n:,}"]
            for name, (_, bins) in each.panels.items() for sure, right, n in bins
        ]  # fmt: skip
        titles = ["scaling", "how sure", "how often right", "tokens"]
        measurer = each.entry.target.partition(":")[2]
        note = f"by {measurer}; on the dashed line, confidence is what it says, and larger points stand for more tokens"
        figure = anchor("reliability", each.entry.digest[:12])
        spec = making.reliability(each)
        found.append(Figure(figure, f"Reliability of {each.model}", note, spec, titles, cells, (1, 2, 3)))
    return found


def asked_for(page: Page) -> list[Figure]:
    """What tasks found that is no single number: answers judged, classes confused."""
    judged = [_judged(name, found) for name, found in asked.judged(page).items()]
    return [*judged, *map(_confused, asked.confusions(page))]


def _judged(name: str, found: Sequence[tuple[str, Task]]) -> Figure:
    words = {"win": "win_rate", "tie": "tie_rate", "loss": "loss_rate"}
    rows = [
        {"name": who, "outcome": outcome, "share": score.value, "text": written(metric, score.value)}
        for who, task in found
        for outcome, metric in words.items()
        if (score := task.scores[metric])
    ]
    cells = [[who, *(number(task.scores[metric]) for metric in words.values())] for who, task in found]
    title, titles = f"{name}: judged against the reference", ["candidate", *words]
    return Figure(f"judged.{anchor(name)}", title, "", charts.outcomes(rows), titles, cells, (1, 2, 3))


def _confused(found: asked.Confusion) -> Figure:
    counts = [
        {"truth": truth, "said": said, "n": n, "share": n / (sum(line) or 1)}
        for truth, line in zip(found.labels, found.counts, strict=False)
        for said, n in zip(found.columns, line, strict=False)
    ]
    cells = [[truth, *map(str, line)] for truth, line in zip(found.labels, found.counts, strict=False)]
    spec = charts.confusion(found.labels, found.columns, counts)
    title, titles = f"{found.task.name}: what {found.candidate} took for what", ["is", *found.columns]
    name = f"confusion.{anchor(found.task.name, found.candidate)}"
    note = "a row is what a document is, a column what was said; darker: a larger share of the row"
    return Figure(name, title, note, spec, titles, cells, range(1, len(titles)))


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


def drawn(name: str, title: str, figures: Sequence[Figure], more: Sequence[Html] = ()) -> Html | None:
    """A section of charts; None where there is nothing to draw."""
    if not figures and not more:
        return None
    body = grid(figures) if len(figures) > 1 else join([figure.html() for figure in figures])
    return section(name, title, body, *more)
