"""How a waterfall reads: as a table for a terminal, and as JSON. Names are joined here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ingot.core.lineage import Link
from ingot.core.quantities import number_text
from ingot.core.report_view import DASH, Names
from ingot.core.table import Column, Table
from ingot.core.waterfall import Chain, Step, Waterfall

Json = Mapping[str, Any]

_COLUMNS = (
    Column("step", "step", "left", 0),
    Column("change", "change", "left", 0),
    Column("reading", "reading", "left", 2),
    Column("value", "", "right", 1),
    Column("bytes", "MB", "right", 3),
)


def waterfall_table(waterfall: Waterfall, names: Names, width: int | None = 140) -> Table:
    """The steps as a tree, each below what it starts from: what changed (with its interval), and the size.

    ``names`` are those of artifacts by digest; what is not in it goes by the name in its receipt.
    """
    notes: list[str] = []
    rows: list[tuple[str, ...]] = []
    for root in _roots(waterfall):
        rows += _below(waterfall, root, names, notes)
    value = Column("value", f"{waterfall.metric}{_unit(waterfall.unit)}", "right", 1)
    columns = tuple(value if column.key == "value" else column for column in _COLUMNS)
    table = Table(columns, tuple(rows), tuple(notes))
    for column in sorted(columns, key=lambda column: -column.priority):
        if width is not None and table.width() > width and column.priority > 0:
            table = table.without(column.key)
    return table


def to_json(waterfall: Waterfall, names: Names) -> dict[str, Any]:
    """The waterfall as ``--json`` shows it."""
    return {
        "metric": waterfall.metric,
        "unit": waterfall.unit,
        "steps": [_step_json(step, waterfall.metric, names) for step in waterfall.steps],
        "chains": [_chain_json(chain, names) for chain in waterfall.chains],
    }


def name_of(link: Link, names: Names) -> str:
    """What an artifact is called."""
    return ", ".join(names.get(link.digest, ())) or link.target.partition(":")[2]


def step_title(step: Step, names: Names) -> str:
    """``merged (adapter, merge)``; with what was not measured between, ``pruned → quantized (2 steps, …)``."""
    title = " → ".join(name_of(link, names) for link in step.through)
    if step.between:
        return f"{title} ({len(step.through)} steps, not measured between)"
    return f"{title} ({', '.join(_kinds(step.end))})"


def change_text(step: Step) -> str:
    """The difference with its interval, and how it was had where it is not paired."""
    text = _signed(step.difference)
    if step.interval is not None:
        text += f" [{_signed(step.interval[0])}, {_signed(step.interval[1])}]"
    return f"{text} unpaired" if step.basis == "unpaired" else text


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{number_text(round(value, 6))}".replace("-", "−")


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" ({unit})"


def _kinds(link: Link) -> list[str]:
    return [kind for _, kind in link.beside if kind is not None] + [link.kind or "unknown"]


def _roots(waterfall: Waterfall) -> list[Link]:
    """Where chains start, each once; of a chain in which nothing was measured its candidate."""
    found: dict[str, Link] = {}
    for chain in waterfall.chains:
        root = chain.start or chain.candidate
        found.setdefault(root.digest, root)
    return list(found.values())


def _below(waterfall: Waterfall, root: Link, names: Names, notes: list[str]) -> Iterator[tuple[str, ...]]:
    """The rows of a tree: its root, then depth first; a chain that shares steps with another shares their rows."""
    first = next((step for step in waterfall.steps if step.start.digest == root.digest), None)
    start = first.before if first else None
    value = DASH if start is None else _value(start.value) + (" by definition" if start.defined else "")
    yield (name_of(root, names), "", "", value, _mb(first.bytes[0] if first else None))
    todo = [(step, 1) for step in reversed(waterfall.steps) if step.start.digest == root.digest]
    yield from _unmeasured(waterfall, root, 1, names, notes)
    while todo:
        step, depth = todo.pop()
        indent = "  " * (depth - 1) + "→ "
        reading = step.reading(waterfall.metric).replace("unknown", "") if step.basis != "exact" else ""
        yield (
            indent + step_title(step, names),
            change_text(step),
            reading,
            _value(step.after.value),
            _mb(step.bytes[1]),
        )
        yield from _unmeasured(waterfall, step.end, depth + 1, names, notes)
        todo += [(other, depth + 1) for other in reversed(waterfall.steps) if other.start.digest == step.end.digest]


def _unmeasured(
    waterfall: Waterfall, last: Link, depth: int, names: Names, notes: list[str]
) -> Iterator[tuple[str, ...]]:
    """What follows an artifact and was not measured."""
    for chain in waterfall.chains:
        end = waterfall.steps[chain.steps[-1]].end if chain.steps else chain.start
        if not chain.unmeasured or end is None or end.digest != last.digest:
            continue
        mark = "not measured"
        if chain.reason is not None:
            if chain.reason not in notes:
                notes.append(chain.reason)
            mark += f" [{notes.index(chain.reason) + 1}]"
        title = " → ".join(name_of(link, names) for link in chain.unmeasured)
        yield ("  " * (depth - 1) + f"→ {title}", mark, "", DASH, DASH)


def _value(value: float) -> str:
    return number_text(value).replace("-", "−")


def _mb(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e6:,.1f}"


def _link_json(link: Link, names: Names) -> dict[str, Any]:
    return {
        "digest": link.digest,
        "names": list(names.get(link.digest, ())) or [link.target.partition(":")[2]],
        "target": link.target,
        "kind": link.kind,
        "beside": [{"target": target, "kind": kind} for target, kind in link.beside],
        "origin": link.origin,
        "index": link.index,
    }


def _step_json(step: Step, metric: str, names: Names) -> dict[str, Any]:
    return {
        "title": step_title(step, names),
        "from": _link_json(step.start, names),
        "through": [_link_json(link, names) for link in step.through],
        "before": step.before.to_dict(),
        "after": step.after.to_dict(),
        "difference": step.difference,
        "interval": None if step.interval is None else list(step.interval),
        "basis": step.basis,
        "documents": step.documents,
        "reading": step.reading(metric),
        "bytes": {"before": step.bytes[0], "after": step.bytes[1]},
    }


def _chain_json(chain: Chain, names: Names) -> dict[str, Any]:
    return {
        "candidate": _link_json(chain.candidate, names),
        "start": None if chain.start is None else _link_json(chain.start, names),
        "steps": list(chain.steps),
        "unmeasured": [_link_json(link, names) for link in chain.unmeasured],
        "reason": chain.reason,
    }
