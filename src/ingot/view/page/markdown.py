"""A report as Markdown for a pull request, with its charts as pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from ingot.view.page import verdicts
from ingot.view.page.facts import Page, Row
from ingot.view.page.figures import Figure
from ingot.view.page.measures import DASH, interval, measure, written

_SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~@&])")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(value: object) -> str:
    """A value as text of Markdown: nothing in it is markup, a mention or a new line."""
    text = _SPECIAL.sub(r"\\\1", _UNSEEN.sub(" ", str(value)))
    return re.sub(r"^(\s*\d*)([-+.)]\s)", r"\1\\\2", text)


def name(value: object) -> str:
    """A name as code, which mentions nobody."""
    text = _UNSEEN.sub(" ", str(value)).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    gap = " " if "`" in text else ""
    return f"{ticks}{gap}{text}{gap}{ticks}"


def report(page: Page, figures: Sequence[Figure]) -> str:
    """The page: what is wrong first, then the table, the gates, the pictures, and how it was measured."""
    parts = [f"# {plain(page.target)}", _introduction(page), *_problems(page), "## Results", _results(page)]
    notes = dict.fromkeys(reason for row in page.rows for reason in row.not_measured.values())
    if notes:
        parts.append("Not measured: " + "; ".join(plain(reason) for reason in notes) + ".")
    if page.verdicts:
        parts += ["## Gates", _gates(page)]
    if figures:
        parts += ["## Charts", *(f"![{plain(figure.title)}]({figure.file})" for figure in figures)]
    parts += ["## How it was measured", "\n".join(_methods(page)), "## Where it comes from", _sources(page)]
    return "\n\n".join(parts) + "\n"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table of cells that are Markdown already; columns in ``numbers`` are aligned right."""
    lines = [titles, ["---:" if at in numbers else "---" for at in range(len(titles))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def results(rows: Sequence[Row], columns: Sequence[str], marks: bool = True) -> str:  # noqa: FBT001, FBT002
    """The table of results."""
    titles = ["candidate", *(plain(measure(column).title) for column in columns)]
    return table(
        titles,
        [[_who(row, marks=marks), *(_cell(row, column) for column in columns)] for row in rows],
        range(1, len(titles)),
    )


def _results(page: Page) -> str:
    return results(page.rows, page.columns())


def _who(row: Row, *, marks: bool) -> str:
    marked = [f"**{plain(mark.word)}**" for mark in row.marks if marks and mark.level != "note"]
    return " ".join([name(row.name), *(["(reference)"] if row.is_reference else []), *marked])


def _cell(row: Row, column: str) -> str:
    score = row.scores.get(column)
    if score is None:
        return "not measured" if column in row.not_measured else DASH
    ends = interval(column, score.metric)
    return f"{written(column, score.metric['value'])}{f' {plain(ends)}' if ends else ''}"


def _introduction(page: Page) -> str:
    reference = page.reference
    against = f" against {name(reference.name)}" if reference else ""
    data = name(page.data.target.partition(":")[2]) if page.data else name(str(page.report["data"])[:12])
    said = f"{len(page.rows)} rows{against}, measured on {data}. Intervals are 95 %."
    return f"{said} Report {name(page.entry.digest[:12])}, log entry {name(page.entry.place)}."


def _problems(page: Page) -> Iterator[str]:
    lines = []
    for problem in page.problems():
        who = ", ".join(name(row.name) for row in problem.rows)
        lines.append(f"- **{plain(problem.word)}** {f'{who}: ' if who else ''}{plain(problem.detail)}")
    if lines:
        yield "\n".join(lines)


def _gates(page: Page) -> str:
    return table(
        ["gate", "verdict", "in full"],
        [[name(verdict.gate), f"**{verdicts.said(verdict)}**", plain(verdict)] for verdict in page.verdicts],
    )


def _methods(page: Page) -> Iterator[str]:
    for metric, how, rows in page.methods():
        yield f"- {name(metric)} ({', '.join(name(row.name) for row in rows)}): {plain(how)}"


def _sources(page: Page) -> str:
    rows = [
        [
            name(node.name),
            plain(node.kind),
            name(node.digest[:12]),
            "" if node.entry is None else name(node.entry.place),
        ]
        for node in page.lineage.nodes.values()
    ]
    return table(["result", "kind", "digest", "log entry"], rows)
