"""What a page says of one report: its rows joined with names and entries of the log. Nothing here draws or measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ingot.core.report_view import UNSCORED, headline, names_of, other_tokens, task_of
from ingot.view.page import lineage, marks, measures, verdicts
from ingot.view.page.book import EVALUATIONS, Book, Entry, Score

if TYPE_CHECKING:
    from ingot.core.gates import Verdict

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What one candidate was asked besides: the task's name in the spec, its kind, and its measurement."""

    name: str
    kind: str
    scores: Mapping[str, Score]
    not_measured: Mapping[str, str]
    entry: Entry | None


@dataclass(frozen=True)
class Row:
    """One candidate: what was measured of it, by metric (``TASK.METRIC`` of tasks), and what could not be."""

    digest: str
    names: tuple[str, ...]
    is_reference: bool
    form: str
    scores: Mapping[str, Score]
    not_measured: Mapping[str, str]
    entry: Entry | None
    evaluation: Entry | None
    tasks: tuple[Task, ...]
    marks: tuple[marks.Mark, ...] = ()

    @property
    def name(self) -> str:
        """The name in the spec, or the digest's beginning where it has none."""
        return ", ".join(self.names) or self.digest[:12]

    @property
    def label(self) -> str:
        """The name, and that it is the reference."""
        return f"{self.name} (reference)" if self.is_reference else self.name


@dataclass(frozen=True)
class Problem:
    """What is wrong with some rows, or (without any) which gate is not kept."""

    level: str
    word: str
    detail: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """Everything that a page of one report is made of."""

    target: str
    report: Json
    entry: Entry
    rows: tuple[Row, ...]
    verdicts: Sequence[Verdict]
    lineage: lineage.Lineage
    book: Book = field(repr=False)
    data: Entry | None = None

    @property
    def spec(self) -> str:
        """The name of the spec."""
        return self.target.partition(":")[0]

    @property
    def name(self) -> str:
        """The report's name within the spec."""
        return self.target.partition(":")[2]

    @property
    def reference(self) -> Row | None:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.is_reference), None)

    def columns(self) -> list[str]:
        """The metrics that some row has, or lacks for a reason: the main ones, then the best of each task."""
        known = {name for row in self.rows for name in (*row.scores, *row.not_measured)}
        main = [name for name in measures.MAIN if name in known]
        rest = sorted(name for name in known - {*main, *measures.COUNTS} if "." not in name)
        return [*main, *rest, *self.headlines()]

    def headlines(self) -> list[str]:
        """The metric that says most of each task, in the order of the spec."""
        found: dict[str, None] = {}
        for name in self.task_names():
            own = [task for row in self.rows for task in row.tasks if task.name == name and task.kind not in UNSCORED]
            best = headline({metric: None for task in own for metric in (*task.scores, *task.not_measured)})
            if best is not None:
                found[f"{name}.{best}"] = None
        return list(found)

    def task_names(self) -> list[str]:
        """The names of all tasks, as they come."""
        return list(dict.fromkeys(task.name for row in self.rows for task in row.tasks))

    def methods(self) -> list[tuple[str, str, list[Row]]]:
        """(metric, how it was measured, of whom), in the words of the log; what was measured differently is apart."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            for metric, score in row.scores.items():
                found.setdefault((metric, str(score.metric["method"])), []).append(row)
        return [(metric, how, found[metric, how]) for metric, how in sorted(found)]

    def verdict_of(self, row: Row, metric: str) -> list[Verdict]:
        """The gates on one number of the table."""
        task, _, bare = metric.rpartition(".")
        below = f".{task}" if task else ""
        wanted = {f"{self.name}.{name}{below}.{bare}" for name in row.names}
        return [verdict for verdict in self.verdicts if verdict.gate in wanted]

    def failed(self) -> list[Verdict]:
        """The gates that are not kept."""
        return [verdict for verdict in self.verdicts if verdict.passed is False]

    def problems(self) -> list[Problem]:
        """What a reader must know before he believes a number: the worst first, the same once with all its rows."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for verdict in self.verdicts:
            level = verdicts.level(verdict)
            if level in ("warn", "bad"):
                found[level, f"gate: {verdicts.said(verdict)}", str(verdict)] = []
        for row in self.rows:
            for mark in row.marks:
                if mark.level != "note":
                    found.setdefault((mark.level, mark.word, mark.detail), []).append(row)
        return sorted((Problem(*key, tuple(rows)) for key, rows in found.items()), key=lambda it: it.level != "bad")


def row_id(row: Row) -> str:
    """The id of a row of the main table."""
    return f"row-{row.digest[:16]}"


def collect(book: Book, receipt: Json, report: Json, verdicts: Sequence[Verdict]) -> Page:
    """Join a report with the log and the store."""
    entry = book.take(receipt)
    chain = lineage.trace(book, entry)
    data = next((book.find(name, digest) for role, name, digest in entry.inputs() if role == "data"), None)
    rows = _Rows(book, entry, report)
    apart = other_tokens(report)
    marked = tuple(_marked(row, chain, data, apart.get(row.digest)) for row in map(rows.row, report["rows"]))
    return Page(str(receipt["target"]), report, entry, marked, tuple(verdicts), chain, book, data)


def _marked(row: Row, chain: lineage.Lineage, data: Entry | None, apart: str | None) -> Row:
    found = tuple(marks.of(row.digest, row.entry, chain, data))
    return replace(row, marks=(*found, *([marks.Mark("warn", "other tokens", apart)] if apart else [])))


class _Rows:
    """Joins the rows of one report with their names and entries."""

    def __init__(self, book: Book, entry: Entry, report: Json) -> None:
        self._book, self._report = book, report
        self._spec = entry.target.partition(":")[0]
        self._names = names_of(entry.receipt)
        #: (name of the measurement, its entry) by the digest of the candidate, as the report was given them.
        self._measured: dict[str, list[tuple[str, Entry]]] = {}
        for role, target, digest in entry.inputs():
            measured = book.find(target, digest) if role == EVALUATIONS else None
            if measured is not None:
                candidate = next((item for role, _, item in measured.inputs() if role == "candidate"), "")
                self._measured.setdefault(candidate, []).append((target, measured))

    def row(self, row: Json) -> Row:
        """One row: what was measured of it, and by which entries."""
        digest = str(row["candidate"])
        own = self._measured.get(digest, ())
        evaluation = next((entry for _, entry in own if entry.receipt["kind"] == "evaluate"), None)
        known = tuple(self._names.get(digest, ()))
        by_digest = {entry.digest: (task_of(target), entry) for target, entry in own}
        tasks = tuple(_task(item, by_digest) for item in row.get("tasks", ()))
        scores = {name: Score(name, metric, evaluation) for name, metric in row["metrics"].items()}
        absent = dict(row.get("not_measured", {}))
        for task in tasks:
            scores |= {f"{task.name}.{name}": score for name, score in task.scores.items()}
            absent |= {f"{task.name}.{name}": reason for name, reason in task.not_measured.items()}
        found = (self._book.find(f"{self._spec}:{name}", digest) for name in known)
        entry = next((each for each in found if each is not None), None)
        form = f"{row['container']} {row['precision']}".strip()
        is_reference = digest == self._report.get("reference")
        return Row(digest, known, is_reference, form, scores, absent, entry, evaluation, tasks)


def _task(item: Json, known: Mapping[str, tuple[str, Entry]]) -> Task:
    name, entry = known.get(str(item["evaluation"]), (str(item["kind"]), None))
    scores = {metric: Score(f"{name}.{metric}", found, entry) for metric, found in item["metrics"].items()}
    return Task(name, str(item["kind"]), scores, item.get("not_measured", {}), entry)
