"""The quality waterfall on a page: what each step of the chain cost or gained, as the log says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingot.core.waterfall import Step, Value, Waterfall, Waterfalls
from ingot.core.waterfall_view import change_text, name_of, step_title
from ingot.view.page import charts
from ingot.view.page.book import Entry
from ingot.view.page.facts import Page
from ingot.view.page.figures import Figure
from ingot.view.page.html import Child, Html, anchor, join, link, tag
from ingot.view.page.measures import axis_title, chart_value, measure, written

Names = Mapping[str, Sequence[str]]
#: So many metrics are drawn, of those that people look at first.
_CHARTS = 2
_WANTED = ("nll_difference", "kl_divergence", "bits_per_byte", "perplexity", "pattern_accuracy", "top1_agreement")


def figures(page: Page) -> Iterator[Figure]:
    """A waterfall each of the first metrics of which a step was measured."""
    found = Waterfalls(page.book.project, dict(page.entry.receipt), page.book.lookup)
    names: Names = {node.digest: node.name.split(", ") for node in page.lineage.nodes.values()}
    drawn = 0
    for metric in (name for name in (*_WANTED, *page.headlines()) if name in found.metrics):
        waterfall = found.of(metric)
        if waterfall.steps and drawn < _CHARTS:
            drawn += 1
            yield _figure(page, waterfall, names)


def _figure(page: Page, waterfall: Waterfall, names: Names) -> Figure:
    metric = waterfall.metric
    steps = [_plain(metric, step, names) for step in waterfall.steps]
    cells = [_cells(page, metric, step, names) for step in waterfall.steps]
    better = "less" if measure(metric).better == "low" else "more"
    note = f"{better} is better; a step leads from one measured result to the next, its interval paired where it can be"
    titles = ["step", "before", "after", "change", "reading", "difference had from"]
    title = f"What each step did to {axis_title(metric)}"
    spec = charts.waterfall(metric, steps)
    return Figure(f"waterfall.{anchor(metric)}", title, note, spec, titles, cells, (1, 2, 3))


def _plain(metric: str, step: Step, names: Names) -> dict[str, Any]:
    start, end = (chart_value(metric, value.value) for value in (step.before, step.after))
    ends = step.interval
    return {
        "name": step_title(step, names), "start": start, "end": end, "right": max(start, end),
        "text": _change(metric, step), "word": step.reading(metric), "level": written(metric, step.after.value),
        "between": "none" if ends is None else f"{written(metric, ends[0])} to {written(metric, ends[1])}",
        "from": name_of(step.start, names),
    }  # fmt: skip


def _change(metric: str, step: Step) -> str:
    shown = written(metric, step.difference)
    return shown if shown.startswith(("+", "−", "-")) or step.difference <= 0 else f"+{shown}"


def _cells(page: Page, metric: str, step: Step, names: Names) -> list[Child]:
    return [
        f"{name_of(step.start, names)} → {step_title(step, names)}",
        _value(page, metric, step.before),
        _value(page, metric, step.after),
        change_text(step),
        step.reading(metric),
        _basis(step),
    ]


def _basis(step: Step) -> str:
    documents = f" over {step.documents} documents" if step.documents else ""
    return {
        "paired": f"pairs{documents}",
        "reference": "the reference, which is so by definition",
        "exact": "two counts",
        "unpaired": "two values, which says little by itself",
    }[step.basis]


def _value(page: Page, metric: str, value: Value) -> Html:
    if value.defined:
        return join(written(metric, value.value), " ", tag("small", "by definition"))
    entry = _entry(page, value)
    shown = written(metric, value.value)
    return join(shown) if entry is None else link(f"#{entry.id_of(metric.rpartition('.')[2])}", shown)


def _entry(page: Page, value: Value) -> Entry | None:
    """The entry of a measurement, which need not be one of the report's own."""
    for receipt in [] if value.evaluation is None else page.book.lookup.builds_of(value.evaluation):
        if (receipt["origin"], receipt["index"]) == (value.origin, value.index):
            return page.book.take(receipt)
    return None
