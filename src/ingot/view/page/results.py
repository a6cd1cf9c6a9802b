"""The first things that a page says: the summary, what is wrong, the table of results, the gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ingot.view.page import html, verdicts
from ingot.view.page.facts import Page, Problem, Row, row_id
from ingot.view.page.figures import section, word
from ingot.view.page.html import Html, anchor, code, join, link, tag
from ingot.view.page.marks import Mark
from ingot.view.page.measures import DASH, interval, measure, written

if TYPE_CHECKING:
    from ingot.core.gates import Verdict
    from ingot.view.page.book import Score

#: So many problems are told at the top; the others stand where they belong.
_MOST = 12


def number(score: Score, *, plain: bool = False) -> Html:
    """A number that leads to its entry, with its interval unless ``plain``."""
    shown = written(score.name, score.metric["value"])
    found = code(shown) if score.href is None else link(score.href, shown)
    ends = "" if plain else interval(score.name, score.metric)
    return join(found, join(" ", tag("small", ends)) if ends else None)


def summary(page: Page) -> Html:
    """What was measured, on what, in one sentence, and the figures that one looks for first."""
    reference = page.reference
    against = join(", against ", code(reference.name)) if reference else ", without a reference"
    data = page.data
    on = (
        join(" on ", code(data.target.partition(":")[2])) if data else join(" on data ", code(page.report["data"][:12]))
    )
    count = len(page.rows) - (reference is not None)
    text = join(f"{count} candidate{'s' * (count != 1)}", against, ", measured", on, ". ")
    said = "Every number leads to its entry in the registry, which says how it was measured."
    return join(tag("p", text, said, class_="lead"), tag("ul", list(_tiles(page)), class_="tiles"))


def _tiles(page: Page) -> Iterator[Html]:
    others = [row for row in page.rows if not row.is_reference] or list(page.rows)
    for title, metric, pick in (
        ("smallest", "bytes", min),
        ("nearest to the reference (KL)", "kl_divergence", min),
        ("lowest perplexity", "perplexity", min),
        ("most right answers", "pattern_accuracy", max),
        ("fastest (tokens/s)", "generation_tokens_per_second", max),
    ):
        having = [row for row in others if metric in row.scores]
        if having:
            best = pick(having, key=lambda row: row.scores[metric].value)
            yield _tile(title, number(best.scores[metric], plain=True), best.name)
    if page.verdicts:
        worst, passed = verdicts.standing(page.verdicts)
        said = {"bad": "failed", "warn": "caution", "note": "pass, where judged", "ok": "all pass"}[worst]
        yield _tile("gates", link("#gates", said, class_=worst), passed)


def _tile(what: str, value: Html, below: str) -> Html:
    return tag("li", tag("span", what, class_="what"), tag("span", value, class_="value"), tag("small", below))


def problems(page: Page) -> Html:
    """What a reader must know before he believes a number; that there is nothing is said too."""
    found = page.problems()
    if not found:
        gates = "Every gate passes" if page.verdicts else "No gate is set"
        said = tag("p", word("ok", "nothing to warn of"), f" {gates}, and the artifacts are here and whole.")
        return tag("aside", said, class_="problems problems-ok", aria_label="State of this report")
    more = tag("p", f"and {len(found) - _MOST} more, each where it belongs") if len(found) > _MOST else None
    title = tag("h2", "Before you believe the numbers", id="problems-title")
    items = tag("ul", [tag("li", _problem(problem)) for problem in found[:_MOST]])
    return tag(
        "aside", title, items, more, class_=f"problems problems-{found[0].level}", aria_labelledby="problems-title"
    )


def _problem(problem: Problem) -> Html:
    label = word(problem.level, problem.word)
    if not problem.rows:
        return join(label, " ", link("#gates", problem.detail))
    names = [join(", " if at else None, link(f"#{row_id(row)}", code(row.name))) for at, row in enumerate(problem.rows)]
    return join(label, " ", names, f": {problem.detail}")


def results(page: Page) -> Html:
    """The table: a row a candidate, a column a metric, with what is wrong beside the number it is wrong with."""
    columns = page.columns()
    reasons: dict[str, int] = {}
    titles = ["candidate", *(measure(name).title for name in columns)]
    rows = [[_who(row), *(_cell(page, row, name, reasons) for name in columns)] for row in page.rows]
    ids = [row_id(row) for row in page.rows]
    caption = "Results: 95 % intervals in brackets"
    body = html.table(caption, titles, rows, numbers=range(1, len(titles)), ids=ids)
    marked = [tag("li", word(mark.level, mark.word), f" {mark.detail}", id=_mark_id(mark)) for mark in _marks(page)]
    notes = [tag("li", reason, id=f"why-{at}") for reason, at in reasons.items()]
    told = join(tag("h3", "What is marked"), tag("ul", marked)) if marked else None
    why = join(tag("h3", "Not measured, and why"), tag("ol", notes)) if notes else None
    return section("results", "Results", tag("div", body, class_="results"), told, why, _directions(columns))


def _marks(page: Page) -> list[Mark]:
    """Every mark once."""
    return list(dict.fromkeys(mark for row in page.rows for mark in row.marks))


def _mark_id(mark: Mark) -> str:
    return anchor("mark", mark.word, mark.detail)


def _directions(columns: Sequence[str]) -> Html:
    low = [measure(name).title for name in columns if measure(name).better == "low"]
    high = [measure(name).title for name in columns if measure(name).better == "high"]
    said = [f"Less is better: {'; '.join(low)}." if low else "", f"More is better: {'; '.join(high)}." if high else ""]
    return tag("p", tag("small", " ".join(part for part in said if part)))


def _who(row: Row) -> Html:
    name = code(row.name) if row.entry is None else link(f"#{row.entry.id}", code(row.name))
    marks = [tag("li", word(mark.level, mark.word, f"#{_mark_id(mark)}")) for mark in row.marks if mark.level != "note"]
    reference = " (reference)" if row.is_reference else ""
    below = tag("ul", marks, class_="marks") if marks else None
    return join(name, reference, tag("br"), tag("small", row.form), below)


def _cell(page: Page, row: Row, name: str, reasons: dict[str, int]) -> Html:
    score = row.scores.get(name)
    if score is None:
        reason = row.not_measured.get(name)
        if reason is None:
            return tag("span", DASH, aria_label="does not apply", role="img")
        at = reasons.setdefault(reason, len(reasons) + 1)
        return link(f"#why-{at}", f"not measured\u00a0({at})", class_="absent")
    badges = [join(" ", verdict_word(verdict)) for verdict in page.verdict_of(row, name)]
    return join(number(score), badges)


def verdict_word(verdict: Verdict) -> Html:
    """What a gate says, in words."""
    return word(verdicts.level(verdict), verdicts.beside(verdict), "#gates")


def gates(page: Page) -> Html | None:
    """The gates of the spec as they are now; None where it has none for this report."""
    if not page.verdicts:
        return None
    rows = [
        [
            code(verdict.gate),
            verdicts.limit(verdict),
            verdicts.value(verdict),
            word(verdicts.level(verdict), verdicts.said(verdict)),
            str(verdict),
        ]
        for verdict in page.verdicts
    ]
    caption = "Gates of the spec, judged from what this report recorded"
    titles = ["gate", "limit", "measured", "verdict", "in full"]
    return section("gates", "Gates", html.table(caption, titles, rows))
