"""The facts of a page for programs: what ``report.json`` of a written report holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.view.page.book import Entry, Score
from ingot.view.page.facts import Page, Row


def report(page: Page) -> dict[str, Any]:
    """The page as plain data: names, measurements with their entries, marks, verdicts, lineage."""
    return {
        "format": 1,
        "target": page.target,
        "digest": page.entry.digest,
        "entry": place(page.entry),
        "reference": page.report.get("reference"),
        "data": page.report["data"],
        "settings": dict(page.report.get("settings", {})),
        "rows": [_row(row) for row in page.rows],
        "gates": [verdict.to_dict() for verdict in page.verdicts],
        "lineage": {
            "nodes": [
                {"digest": node.digest, "targets": list(node.names), "kind": None if node.entry is None else node.kind,
                 "entry": place(node.entry), "artifact": None if node.entry is None else node.entry.presence}
                for node in page.lineage.nodes.values()
            ],
            "edges": [{"from": edge.source, "to": edge.goal, "role": edge.role} for edge in page.lineage.edges],
        },
    }  # fmt: skip


def place(entry: Entry | None) -> dict[str, Any] | None:
    """Where the log has an entry; None for what no log holds."""
    return None if entry is None else {"origin": entry.receipt["origin"], "index": entry.receipt["index"]}


def _row(row: Row) -> dict[str, Any]:
    own = {name: score for name, score in row.scores.items() if "." not in name}
    return {
        "candidate": row.digest,
        "names": list(row.names),
        "reference": row.is_reference,
        "form": row.form,
        "artifact": None if row.entry is None else row.entry.presence,
        "entry": place(row.entry),
        "evaluation": place(row.evaluation),
        "metrics": _metrics(own),
        "not_measured": {name: reason for name, reason in row.not_measured.items() if "." not in name},
        "tasks": [
            {"name": task.name, "kind": task.kind, "entry": place(task.entry), "not_measured": dict(task.not_measured),
             "metrics": _metrics({name.rpartition(".")[2]: score for name, score in task.scores.items()})}
            for task in row.tasks
        ],
        "marks": [{"level": mark.level, "word": mark.word, "detail": mark.detail} for mark in row.marks],
    }  # fmt: skip


def _metrics(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: dict(score.metric) for name, score in scores.items()}
