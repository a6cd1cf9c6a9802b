"""How a report reads: its rows joined with names, as a table for a terminal and as Markdown.

A report holds digests and measurements only; the names come from whoever shows it, so the same
report serves two specs. Nothing here measures or draws: ``table`` gives plain text cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ingot.core.table import Column, Table

Json = Mapping[str, Any]
Names = Mapping[str, Sequence[str]]
DASH = "–"


def _plain(decimals: int, scale: float = 1.0, sign: str = "") -> Callable[[float], str]:
    return lambda value: f"{value * scale:{sign},.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class _Shown:
    """A metric's column: how its value is written, and whether its interval is shown where there is room."""

    column: Column
    write: Callable[[float], str]
    interval: bool = False


def _shown(metric: str, title: str, priority: int, write: Callable[[float], str], *, interval: bool = False) -> _Shown:
    return _Shown(Column(metric, title, "right", priority), write, interval)


_NAME = Column("step", "step", "left", 0)
_FORMAT = Column("format", "format", "left", 5)
_GATES = Column("gates", "gates", "left", 2)
_METRICS = (
    _shown("bytes", "MB", 1, _plain(1, 1e-6)),
    _shown("bits_per_weight", "bits/weight", 6, _plain(2)),
    _shown("perplexity", "perplexity", 2, _plain(3), interval=True),
    _shown("bits_per_byte", "bits/byte", 1, _plain(4), interval=True),
    _shown("bits_per_byte_difference", "Δ bits/byte", 1, _plain(4, sign="+"), interval=True),
    _shown("pattern_accuracy", "right %", 2, _plain(1, 100), interval=True),
    _shown("nll_difference", "Δ nats/token", 1, _plain(4, sign="+"), interval=True),
    _shown("kl_divergence", "KL", 3, _plain(4), interval=True),
    _shown("top1_agreement", "same top-1 %", 7, _plain(1, 100), interval=True),
    _shown("prompt_tokens_per_second", "prompt tok/s", 8, _plain(0)),
    _shown("generation_tokens_per_second", "gen tok/s", 4, _plain(1)),
)
#: Only where questions were asked: a column of dashes would say nothing to all others.
_ASKED = "pattern_accuracy"
#: What compares candidates where numbers per token do not: only where a tokenizer gives other tokens.
_PER_BYTE = ("bits_per_byte", "bits_per_byte_difference")
#: What says most of a task, best first; what only counts says nothing of it.
HEADLINES = (
    "exact_match", "exact_match_strict", "pass_at_1", "acc_norm", "acc", "f1_lax", "accuracy", "win_rate",
    "rouge_l", "pattern_accuracy",
)  # fmt: skip
_COUNTS = ("tokens", "documents", "items", "samples", "questions")
#: Kinds of tasks whose answers are there to be read: none of their numbers says how good they are.
UNSCORED = ("samples",)


def names_of(receipt: Json) -> dict[str, list[str]]:
    """The names of what a report was made of, as the build saw them: digest → targets of that content."""
    names: dict[str, list[str]] = {}
    for role in ("reference", "candidates", "evaluations"):
        value = receipt["inputs"].get(role, [])
        for item in [value] if isinstance(value, Mapping) else value:
            name = str(item["target"]).partition(":")[2]
            known = names.setdefault(str(item["digest"]), [])
            if name not in known:
                known.append(name)
    return names


def task_of(target: str) -> str:
    """The name of a task by that of its measurement: ``s:report.gguf@Q4_0.gsm8k`` is ``gsm8k``."""
    return target.rpartition(".")[2]


def other_tokens(report: Json) -> dict[str, str]:
    """Of candidates whose numbers per token do not compare with the first one's, why, by digest.

    With a reference there are none: each candidate scored its tokens, or says itself what does not compare.
    """
    if report.get("reference") is not None or not report["rows"]:
        return {}
    first, *others = ((str(row["candidate"]), *_scored(row)) for row in report["rows"])
    return {
        digest: f"scored {_amount(tokens, size)} of the held-out text where the first candidate scored "
        f"{_amount(*first[1:])}: its tokenizer is another, so perplexity and nll do not compare; with a reference and "
        "'other_tokenizer: bits_per_byte' all are scored on one text"
        for digest, tokens, size in others
        if tokens != first[1] or (None not in (size, first[2]) and size != first[2])
    }


def _scored(row: Json) -> tuple[int | None, int | None]:
    """The tokens that were scored, and the bytes of text that they stand for, as far as is known."""
    tokens, size = row["metrics"].get("tokens", {}).get("value"), row["metrics"].get("bits_per_byte", {}).get("n")
    return tokens, size


def _amount(tokens: int | None, size: int | None) -> str:
    text = "no" if tokens is None else f"{tokens:,}"
    return f"{text} tokens" if size is None else f"{text} tokens ({size:,} bytes)"


def headline(metrics: Mapping[str, object]) -> str | None:
    """The metric that says most of a task; None where there is none."""
    named = next((name for name in HEADLINES if name in metrics), None)
    ending = (name for name in sorted(metrics) if name.endswith(tuple(f"_{end}" for end in HEADLINES)))
    others = (name for name in sorted(metrics) if name not in _COUNTS)
    return named or next(ending, None) or next(others, None)


def table(report: Json, names: Names, width: int | None = 140, verdicts: Mapping[str, str] | None = None) -> Table:
    """The report's main table, fitted to ``width`` characters (None: everything); the best metric of each task in it.

    ``verdicts`` says by a candidate's name what its gates say. When the table does not fit, first the intervals go,
    from the least important column on, then whole columns.
    """
    report, tasks = _with_tasks(report, names)
    left_out = _left_out(report["rows"])
    metrics = [shown for shown in _METRICS if shown.column.key not in left_out] + tasks
    result = _build(report, names, metrics, verdicts)
    if width is None:
        return result
    for shown in sorted((m for m in metrics if m.interval), key=lambda m: -m.column.priority):
        if result.width() <= width:
            return result
        metrics[metrics.index(shown)] = replace(shown, interval=False)
        result = _build(report, names, metrics, verdicts)
    for column in sorted(result.columns, key=lambda column: -column.priority):
        if result.width() > width and column.priority > 0:
            result = result.without(column.key)
    return result


def _left_out(rows: Sequence[Json]) -> tuple[str, ...]:
    """The columns that would say nothing, or the same twice, in a report of these rows."""
    asked = any(_ASKED in {**row["metrics"], **row.get("not_measured", {})} for row in rows)
    others = any("nll_difference" in row.get("not_measured", {}) and _PER_BYTE[0] in row["metrics"] for row in rows)
    return (*(() if asked else (_ASKED,)), *(() if others else _PER_BYTE))


def steps(report: Json, names: Names) -> Table:
    """Quality by step and size: how large each is beside the reference, and what it lost or gained."""
    rows = report["rows"]
    base = next((row for row in rows if row["candidate"] == report.get("reference")), None)
    columns = (
        _NAME,
        Column("size", "size", "right", 1),
        Column("change", "perplexity", "right", 1),
        Column("reading", "against the reference", "left", 0),
    )
    cells = tuple(
        (_name(row, names, report), _relative(row, base), _change(row), _reading(row, report)) for row in rows
    )
    return Table(columns, cells)


def markdown(report: Json, names: Names) -> str:
    """The report as a Markdown page: both tables, the notes, and how each number was measured."""
    main = table(report, names, None)
    parts = ["# Report", _introduction(report), _markdown_table(main)]
    if main.notes:
        parts.append("\n".join(f"- {note}" for note in main.notes))
    parts += ["## Quality by step and size", _markdown_table(steps(report, names)), "## How it was measured"]
    parts.append("\n".join(f"- {line}" for line in _methods(report)))
    return "\n\n".join(parts) + "\n"


def _with_tasks(report: Json, names: Names) -> tuple[Json, list[_Shown]]:
    """The report with what tasks measured among the metrics of its rows (``TASK.METRIC``), and a column a task."""
    rows, found = [], dict[str, dict[str, None]]()
    for row in report["rows"]:
        metrics, absent = dict(row["metrics"]), dict(row.get("not_measured", {}))
        for item in row.get("tasks", ()):
            task = task_of(next(iter(names.get(item["evaluation"], ())), item["kind"]))
            known = [] if item["kind"] in UNSCORED else [*item["metrics"], *item.get("not_measured", {})]
            found.setdefault(task, {}).update(dict.fromkeys(known))
            metrics |= {f"{task}.{name}": metric for name, metric in item["metrics"].items()}
            absent |= {f"{task}.{name}": reason for name, reason in item.get("not_measured", {}).items()}
        rows.append({**row, "metrics": metrics, "not_measured": absent})
    best = [(task, name) for task, known in found.items() if (name := headline(known)) is not None]
    columns = [_shown(f"{task}.{name}", f"{task} {name}", 3, _plain(3), interval=True) for task, name in best]
    return {**report, "rows": rows}, columns


def _build(report: Json, names: Names, metrics: Sequence[_Shown], verdicts: Mapping[str, str] | None = None) -> Table:
    notes: list[str] = []
    rows = tuple(
        (
            _name(row, names, report),
            f"{row['container']} {row['precision']}".strip(),
            *(_cell(row, shown, notes) for shown in metrics),
            *([_gated(row, names, verdicts)] if verdicts else []),
        )
        for row in report["rows"]
    )
    columns = (_NAME, _FORMAT, *(shown.column for shown in metrics), *([_GATES] if verdicts else []))
    apart = other_tokens(report)
    told = [
        f"{_name(row, names, report)} {apart[digest]}"
        for row in report["rows"]
        if (digest := row["candidate"]) in apart
    ]
    return Table(columns, rows, (*(f"[{index}] {note}" for index, note in enumerate(notes, start=1)), *told))


def _gated(row: Json, names: Names, verdicts: Mapping[str, str]) -> str:
    """What the gates of a row's names say; a dash where there is none."""
    return (
        ", ".join(dict.fromkeys(verdicts[name] for name in names.get(row["candidate"], ()) if name in verdicts)) or DASH
    )


def _name(row: Json, names: Names, report: Json) -> str:
    name = ", ".join(names.get(row["candidate"], ())) or row["candidate"][:12]
    return f"{name} (reference)" if row["candidate"] == report.get("reference") else name


def _cell(row: Json, shown: _Shown, notes: list[str]) -> str:
    metric = row["metrics"].get(shown.column.key)
    if metric is None:
        reason = row.get("not_measured", {}).get(shown.column.key)
        if reason is None:
            return DASH
        if reason not in notes:
            notes.append(reason)
        return f"{DASH}[{notes.index(reason) + 1}]"
    text = shown.write(metric["value"])
    if shown.interval and "interval" in metric:
        low, high = (shown.write(end) for end in metric["interval"])
        return f"{text} [{low}, {high}]"
    return text


def _relative(row: Json, base: Json | None) -> str:
    if base is None or "bytes" not in row["metrics"]:
        return DASH
    return f"{100 * row['metrics']['bytes']['value'] / base['metrics']['bytes']['value']:.0f} %"


def _change(row: Json) -> str:
    difference = row["metrics"].get("nll_difference")
    if difference is None:
        return DASH
    return f"{100 * math.expm1(difference['value']):+.1f} %".replace("-", "−")


def _reading(row: Json, report: Json) -> str:
    if row["candidate"] == report.get("reference"):
        return "the reference"
    difference = row["metrics"].get("nll_difference")
    if difference is None:
        return "not measured"
    if "interval" not in difference:
        return "too few documents to say"
    low, high = difference["interval"]
    if high < 0:
        return "better"
    return "worse" if low > 0 else "no difference shown"


def _introduction(report: Json) -> str:
    reference = report.get("reference")
    against = f"against reference `{reference[:12]}`" if reference else "without a reference"
    return (
        f"Data `{report['data'][:12]}`, {against}. Intervals are 95 %, bootstrapped over documents. "
        "Δ is the paired difference in nats per token: below 0 the candidate predicts better than the reference."
    )


def _methods(report: Json) -> list[str]:
    """One line a metric and method: rows that were measured differently are told apart by their container."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in report["rows"]:
        for name, metric in row["metrics"].items():
            containers = found.setdefault((name, metric["unit"], metric["method"]), [])
            if row["container"] not in containers:
                containers.append(row["container"])
    return [f"`{name}` ({unit}; {', '.join(on)}): {method}" for (name, unit, method), on in sorted(found.items())]


def _markdown_table(shown: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(" --- " if column.align == "left" else " ---: " for column in shown.columns) + "|"
    return "\n".join([line([column.title for column in shown.columns]), rule, *map(line, shown.rows)])
