"""Answer a query over the variants of a registry: which satisfy it, which were not measured, what does not compare.

Of a metric the numbers that compare are those taken in one way: the way in which most variants were measured, of
several the newest. A number that was taken in another way is shown and judged where there is no other, and marked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.core.directions import AGAINST_ITSELF, better
from ingot.core.lineage import inputs
from ingot.core.query_text import SIZE, SPEED, WORDS, Condition, Order, Query
from ingot.core.variants import Number, Variant, Way, names_of
from ingot.errors import UsageError

#: What is shown where the query names nothing.
_USUAL = (SIZE, "perplexity", "kl_divergence", SPEED)


@dataclass(frozen=True)
class Chosen:
    """The number of a variant that counts; ``differs`` says what keeps it from comparing with the others."""

    number: Number
    differs: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A variant that satisfies the query; ``front``: no other is better in one of the metrics and as good in the rest.

    ``front`` is None where a number of the front was not measured, or does not compare.
    """

    variant: Variant
    values: Mapping[str, Chosen]
    front: bool | None = None


@dataclass(frozen=True)
class Lacking:
    """A variant that is left out because a metric of the query was not measured of it."""

    variant: Variant
    metric: str
    #: Whether the others are compared with it in that metric.
    is_reference: bool = False


@dataclass(frozen=True)
class Front:
    """A metric of the Pareto front, and which way is better."""

    name: str
    highest: bool


@dataclass
class Answer:
    """What came of a query; ``rows`` in its order, ``others`` counts those that were measured and do not satisfy it."""

    columns: tuple[str, ...]
    front: tuple[Front, ...]
    rows: list[Row] = field(default_factory=list)
    lacking: list[Lacking] = field(default_factory=list)
    others: int = 0
    #: How many satisfy it beyond the limit.
    more: int = 0


def answer(
    query: Query, variants: Sequence[Variant], columns: Sequence[str] = (), front: Sequence[Front] | None = None
) -> Answer:
    """Answer a query whose names are resolved (``resolved``)."""
    words = [condition for condition in query.conditions if condition.name in WORDS]
    # What is not asked about has no say in which way of measuring counts.
    chosen = [variant for variant in variants if all(_holds(condition, variant) for condition in words)]
    metrics = [condition.name for condition in query.conditions if condition.name not in WORDS]
    metrics += [query.order.name] if query.order else []
    # What the query and a front that was asked for speak of must have been measured.
    required = tuple(dict.fromkeys([*metrics, *(item.name for item in front or ())]))
    known = names_of(variants)
    front = _default_front(metrics, known) if front is None else front
    shown = tuple(columns) or tuple(name for name in dict.fromkeys([*required, SIZE]) if name in known)
    if not columns and not required:
        shown = tuple(name for name in _USUAL if name in known)
    found = Answer(shown, tuple(front))
    values = _chosen(chosen, dict.fromkeys([*shown, *required, *(item.name for item in front)]))
    numbers = [condition for condition in query.conditions if condition.name not in WORDS]
    for variant in chosen:
        mine = values[variant.digest]
        lacking = [name for name in required if name not in mine]
        if any(
            condition.name in mine and not condition.holds(mine[condition.name].number.value) for condition in numbers
        ):
            # What is known rules it out already: that something else was not measured makes no difference.
            found.others += 1
        elif lacking:
            found.lacking += [Lacking(variant, name, _is_reference(variant, name, variants)) for name in lacking]
        else:
            found.rows.append(Row(variant, mine))
    found.rows = _with_front(_ordered(found.rows, query.order), found.front)
    if query.limit is not None:
        found.more = max(0, len(found.rows) - query.limit)
        found.rows = found.rows[: query.limit]
    return found


def resolved(name: str, variants: Sequence[Variant]) -> str:
    """The metric that a name means: itself, or the one task's that has it. UsageError (E-METRIC) with nearest names."""
    known = names_of(variants)
    if name in known or name in WORDS:
        return name
    tasks = [each for each in known if each.endswith(f".{name}")]
    if len(tasks) == 1:
        return tasks[0]
    if tasks:
        raise UsageError("E-METRIC", f"several tasks measure {name!r}", facts=tasks, hint="name one of them")
    near = difflib.get_close_matches(name, [*known, *(each.rpartition(".")[2] for each in known)], n=3)
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else f"measured are {', '.join(sorted(known)[:30])}"
    )
    raise UsageError("E-METRIC", f"nothing has measured {name!r}", hint=hint if known else "nothing was measured yet")


def front_of(names: Iterable[str]) -> tuple[Front, ...]:
    """The metrics of a front; UsageError (E-METRIC) where it is not known which way one of them is better."""
    found = []
    for name in names:
        way = better(name)
        if way is None:
            what = f"which way {name} is better is not known"
            raise UsageError("E-METRIC", what, hint="a Pareto front needs metrics whose better side is known")
        found.append(Front(name, way == "higher"))
    return tuple(found)


def _default_front(metrics: Sequence[str], known: Sequence[str]) -> tuple[Front, ...]:
    """Size, and what the query speaks of; without that the divergence from the reference, or the perplexity."""
    named = [name for name in metrics if better(name) is not None and name != SIZE]
    usual = [name for name in ("kl_divergence", "perplexity") if name in known][:1]
    names = dict.fromkeys([SIZE, *(named or usual)])
    return front_of(names if len(names) > 1 and SIZE in known else [])


def _is_reference(variant: Variant, name: str, variants: Sequence[Variant]) -> bool:
    if any(inputs(receipt, "logits") for _, receipt in variant.measured_by):
        return better(name) is not None and name in AGAINST_ITSELF
    return any(number.way.reference == variant.digest for other in variants for number in other.numbers(name))


def _holds(condition: Condition, variant: Variant) -> bool:
    if condition.name == "kind":
        return condition.holds(variant.kind)
    names = [target if condition.name == "target" else target.partition(":")[0] for target in variant.targets]
    if condition.name == "target":
        names += [name.partition(":")[2] for name in names]
    found = [Condition(condition.name, "=", condition.value).holds(name) for name in names]
    return any(found) == (condition.sign == "=")


def _chosen(variants: Sequence[Variant], names: Iterable[str]) -> dict[str, dict[str, Chosen]]:
    """By variant and metric, the number that counts."""
    found: dict[str, dict[str, Chosen]] = {variant.digest: {} for variant in variants}
    for name in names:
        way = _common_way(variants, name)
        for variant in variants:
            numbers = variant.numbers(name)
            alike = [number for number in numbers if number.way == way]
            if alike:
                found[variant.digest][name] = Chosen(max(alike, key=lambda number: number.order))
            elif numbers and way is not None:
                newest = max(numbers, key=lambda number: number.order)
                found[variant.digest][name] = Chosen(newest, tuple(newest.way.differs(way)))
    return found


def _common_way(variants: Sequence[Variant], name: str) -> Way | None:
    """The way in which most variants were measured; of several the one of the newest number."""
    counts: dict[Way, int] = {}
    newest: dict[Way, tuple[str, str, int]] = {}
    for variant in variants:
        for number in variant.numbers(name):
            newest[number.way] = max(newest.get(number.way, number.order), number.order)
        for way in {number.way for number in variant.numbers(name)}:
            counts[way] = counts.get(way, 0) + 1
    return max(counts, key=lambda way: (counts[way], newest[way]), default=None)


def _ordered(rows: list[Row], order: Order | None) -> list[Row]:
    if order is None:
        return rows
    sign = -1 if order.descending else 1
    return sorted(rows, key=lambda row: sign * row.values[order.name].number.value)


def _with_front(rows: list[Row], front: Sequence[Front]) -> list[Row]:
    """The rows, each with whether it is on the front of those whose numbers compare."""
    if not front:
        return rows
    points: dict[str, tuple[float, ...]] = {}
    for row in rows:
        chosen = [row.values.get(item.name) for item in front]
        if all(value is not None and not value.differs for value in chosen):
            points[row.variant.digest] = tuple(
                (-1 if item.highest else 1) * value.number.value
                for item, value in zip(front, chosen, strict=True)
                if value
            )
    every = list(points.values())
    marks = {digest: not any(_dominates(other, mine) for other in every) for digest, mine in points.items()}
    return [Row(row.variant, row.values, marks.get(row.variant.digest)) for row in rows]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def to_json(found: Answer, reasons: Mapping[tuple[str, str], str | None]) -> dict[str, Any]:
    """The answer as ``--json`` shows it; ``reasons`` say why something was not measured, by digest and metric."""
    return {
        "columns": list(found.columns),
        "pareto": [{"metric": item.name, "better": "higher" if item.highest else "lower"} for item in found.front],
        "variants": [_row_json(row) for row in found.rows],
        "more": found.more,
        "excluded": found.others,
        "not_measured": [
            {
                "targets": item.variant.targets,
                "digest": item.variant.digest,
                "metric": item.metric,
                "reason": reasons.get((item.variant.digest, item.metric)),
            }
            for item in found.lacking
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    variant = row.variant
    return {
        "targets": variant.targets,
        "digest": variant.digest,
        "kind": variant.kind,
        "origin": variant.receipt["origin"],
        "index": variant.receipt["index"],
        "pareto": row.front,
        "values": {name: _value_json(chosen) for name, chosen in row.values.items()},
    }


def _value_json(chosen: Chosen) -> dict[str, Any]:
    number = chosen.number
    measured = {"target": number.target, "digest": number.digest, "origin": number.origin, "index": number.index}
    differs = [{"what": what, "here": here, "others": there} for what, here, there in chosen.differs]
    return {**number.metric, "measured_by": measured, "differs": differs}
