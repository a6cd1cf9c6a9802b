"""What the fault suite reached, by the ids of the catalogue: counted while it runs, written into docs/promises.md.

A test that plants a fault is marked ``@pytest.mark.fault("C1", "what is done to it")`` and tells by ``cases(n)`` how
many cases it tried (1 unless it says so). ``python -m pytest -m "fault and not slow" --write-promises`` runs them all
and writes the table; an ordinary run checks that the table and the marks agree. With ``-m "fault and slow"`` it is the
table of the full tier. A run of some files, or with ``-k``, writes its rows and leaves the others as they were reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PROMISES = REPO / "docs" / "promises.md"
COMMAND = 'python -m pytest -m "fault and not slow" --write-promises'
FULL_COMMAND = 'python -m pytest -m "fault and slow" --write-promises'
#: The tables in docs/promises.md.
EVERYDAY, FULL = "faults", "full"
#: The id of a fault, what is done, the test's file and how many cases it tried.
Planted = tuple[str, str, str, int]
_TITLES = ("id", "what is done", "cases", "violations", "tests")


@dataclass
class Row:
    """One line of the table: the tests of one id that do the same thing."""

    id: str
    what: str
    cases: int = 0
    violations: int = 0
    skipped: bool = False
    files: set[str] = field(default_factory=set)

    def cells(self) -> tuple[str, ...]:
        """The line as it is written; what was skipped on this machine has no counts."""
        counts = ("skipped", "") if self.skipped and not self.cases else (f"{self.cases:,}", str(self.violations))
        return self.id, self.what, *counts, ", ".join(f"`{name}`" for name in sorted(self.files))


class Ledger:
    """Collects the outcomes of one test run."""

    def __init__(self) -> None:
        #: Faults of tests that were left out because they take minutes.
        self.slow: set[tuple[str, str]] = set()
        self.rows: dict[tuple[str, str], Row] = {}
        self._told: dict[str, int] = {}

    def tell(self, nodeid: str, count: int) -> None:
        """A test says that it tried ``count`` cases more."""
        self._told[nodeid] = self._told.get(nodeid, 0) + count

    def planted(self, item: pytest.Item) -> list[Planted]:
        """What a test that has ended planted: plain values, which a report carries from one process to another."""
        file, cases = item.path.relative_to(REPO).as_posix(), self._told.get(item.nodeid, 1)
        return [(*_identity(mark), file, cases) for mark in item.iter_markers("fault")]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test ended: passed, failed or skipped."""
        planted: list[Planted] = getattr(report, "planted", [])
        for identity, what, file, cases in planted:
            row = self.rows.setdefault((identity, what), Row(identity, what))
            row.files.add(file)
            if report.skipped:
                row.skipped = True
                continue
            row.cases += cases
            row.violations += report.failed

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Tests were left out by their marks."""
        self.slow |= marked(item for item in items if item.get_closest_marker("slow"))

    def write(self, table: str, *, in_part: bool) -> None:
        """Replace a table in docs/promises.md, or those of its rows that this run has reached."""
        before, _start, rest = PROMISES.read_text().partition(f"<!-- {table} -->")
        _old, _end, after = rest.partition(f"<!-- /{table} -->")
        cells = {identity: row.cells() for identity, row in self.rows.items()}
        if in_part:
            cells = {(row[0], row[1]): row for row in _rows(table)} | cells
        lines = [_line(_TITLES), _line(["---"] * len(_TITLES))]
        lines += [_line(cells[identity]) for identity in sorted(cells, key=_order)]
        text = "\n".join(lines)
        PROMISES.write_text(f"{before}<!-- {table} -->\n{text}\n<!-- /{table} -->{after}")


def _rows(table: str) -> list[tuple[str, ...]]:
    text = PROMISES.read_text().partition(f"<!-- {table} -->")[2].partition(f"<!-- /{table} -->")[0]
    lines = text.strip().splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def written(table: str = EVERYDAY) -> set[tuple[str, str]]:
    """The (id, what) pairs of a table in docs/promises.md."""
    return {(row[0], row[1]) for row in _rows(table)}


def marked(items: Iterable[pytest.Item]) -> set[tuple[str, str]]:
    """The (id, what) pairs of the marks of these tests."""
    return {_identity(mark) for item in items for mark in item.iter_markers("fault")}


def _identity(mark: pytest.Mark) -> tuple[str, str]:
    identity, what = mark.args
    return str(identity), str(what)


def _order(identity: tuple[str, str]) -> tuple[str, int, str]:
    letters, number = re.fullmatch(r"([A-Z]+)(\d*)", identity[0]).groups()  # type: ignore[union-attr]
    return letters, int(number or 0), identity[1]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
