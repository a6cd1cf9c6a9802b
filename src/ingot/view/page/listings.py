"""The parts of a page that list: answers side by side, what tasks measured, how everything was measured."""

from __future__ import annotations

from collections.abc import Sequence

from ingot.view.page import asked, html
from ingot.view.page.facts import Page, Row
from ingot.view.page.figures import section, word
from ingot.view.page.html import Child, Html, code, join, tag
from ingot.view.page.measures import DASH
from ingot.view.page.results import number


def answers(page: Page) -> Html | None:
    """Questions, and what every candidate answered; None where nothing was asked."""
    found = list(asked.questions(page))
    if not found:
        return None
    return section("answers", "Answers side by side", [_questions(each) for each in found])


def _questions(found: asked.Questions) -> Html:
    told = f"{len(found.samples)} of the {found.asked} that all candidates answered; "
    told += "first those on which they are not equally right. Candidates that answered the same stand together."
    title = tag("h3", "Task ", code(found.task)) if found.task else None
    level = "h4" if found.task else "h3"
    return join(title, tag("p", told), [_sample(item, level) for item in found.samples])


def _sample(sample: asked.Sample, level: str) -> Html:
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
    title = tag(level, "Question ", code(sample.id))
    question = sample.prompt or "its text is not here: the data set's artifact is missing"
    body = html.table(f"Answers to {sample.id}", ["who", "answer", "reading"], rows)
    return join(title, tag("pre", question, class_="answer", dir="auto"), tag("div", body, class_="answers"))


def tasks(page: Page) -> Html | None:
    """All that each task measured: a row a metric, a column a candidate."""
    names = [row for row in page.rows if row.tasks]
    found: dict[tuple[str, str], None] = {}
    for row in names:
        for task in row.tasks:
            found |= dict.fromkeys((task.name, metric) for metric in sorted({*task.scores, *task.not_measured}))
    if not found:
        return None
    rows = [
        [task, code(metric), *(_scored(row, f"{task}.{metric}") for row in names)] for task, metric in sorted(found)
    ]
    titles = ["task", "metric", *(code(row.name) for row in names)]
    return html.table("Everything that tasks measured", titles, rows, numbers=range(2, len(titles)))


def _scored(row: Row, metric: str) -> Child:
    """What a task measured of a candidate, of how many; or why it did not."""
    score = row.scores.get(metric)
    if score is None:
        return tag("small", row.not_measured.get(metric, DASH))
    count = score.metric.get("n")
    return join(number(score), tag("small", f" n {count:,}") if count is not None else None)


def methods(page: Page) -> Html:
    """How each metric was measured, in the words of the log; rows that were measured differently are told apart."""
    rows = [[code(metric), ", ".join(row.name for row in rows), how] for metric, how, rows in page.methods()]
    body = html.table("How each metric was measured", ["metric", "candidates", "method"], rows)
    settings = [[code(name), str(value)] for name, value in sorted(page.report.get("settings", {}).items())]
    given = html.table("Settings of the report", ["setting", "value"], settings) if settings else None
    return section("methods", "How it was measured", body, given)
