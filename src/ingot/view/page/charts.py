"""Charts of quality: against size, by step, by class, judged, and over time; each says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ingot.view.page.measures import axis_title, chart_value, measure, written
from ingot.view.page.palette import var
from ingot.view.page.plot import HEIGHT, Spec, axis_of, finished, inline, is_wide, tips_of

#: The width of a plot for which names are placed: the narrowest that is common.
_NARROW = 330


def quality(metric: str, points: Sequence[Mapping[str, Any]]) -> Spec:
    """Quality against size. Points: name, size (bytes), value, low, high (or None), front, role."""
    import altair as alt

    rows = [_quality_row(metric, point) for point in points]
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["x"])
    ends = [row[key] for row in rows for key in ("y", "low", "high")]
    _place_labels(rows, ends)
    x = alt.X("x:Q", title="size, MB", **axis_of([row["x"] for row in rows], names=True))
    y = alt.Y("y:Q", title=axis_title(metric), **axis_of(ends))
    roles = ["on the Pareto front", "dominated", "reference"]
    colour = alt.Color("role:N", scale=alt.Scale(domain=roles, range=[var("c1"), var("c5"), var("c2")]))
    shape = alt.Shape("role:N", scale=alt.Scale(domain=roles, range=["circle", "cross", "diamond"]))
    base = alt.Chart(inline(rows)).encode(x=x)
    tips = tips_of(name="candidate", size="size", text=measure(metric).title, between="95 % interval", role="")
    step: Any = "step-after"
    line = alt.Chart(inline(front)).mark_line(interpolate=step, strokeDash=[5, 4], color=var("c1"), opacity=0.7)
    layers = [
        line.encode(x=x, y=y),
        base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1, stroke=var("paper")).encode(
            y=y, color=colour, shape=shape, tooltip=tips
        ),
        base.mark_text(align="left", dx=9, dy=alt.ExprRef("datum.dy"), limit=170).encode(y=y, text="label:N"),
    ]
    best = f"{measure(metric).title}, {'less' if measure(metric).better == 'low' else 'more'} is better"
    named = "; ".join(f"{row['name']} {row['size']}, {row['text']}" for row in rows)
    return finished(alt.layer(*layers), f"Quality against size: {best}. {named}.", HEIGHT)


def _place_labels(rows: Sequence[dict[str, Any]], ends: Sequence[float]) -> None:
    """Put each name above or below its point, where no other stands; one that finds no room is left to the pointer."""
    across = _spread([row["x"] for row in rows], [row["x"] for row in rows], 1.38)
    up = _spread([row["y"] for row in rows], ends, 1.16)
    taken: list[tuple[float, float, float]] = []
    for row, x, y in zip(rows, across, up, strict=True):
        left, right = x * _NARROW, x * _NARROW + 7.0 * len(row["label"]) + 12
        row["dy"] = 0
        for dy in (-9, 13, -22, 26, -35, 39):
            at = (1 - y) * HEIGHT + dy
            if all(right < begin or end < left or abs(at - other) > 12 for begin, end, other in taken):
                taken.append((left, right, at))
                row["dy"] = dy
                break
        else:
            row["label"] = ""


def _spread(values: Sequence[float], ends: Sequence[float], room: float) -> list[float]:
    """Where values lie between the ends of an axis, 0 to 1, roughly as it will be drawn."""
    wide = is_wide(ends)
    low, high, *found = [math.log(value) if wide else value for value in (min(ends), max(ends), *values)]
    span = ((high - low) or 1.0) * room
    return [(value - low) / span + 0.08 / room for value in found]


def _quality_row(metric: str, point: Mapping[str, Any]) -> dict[str, Any]:
    value = chart_value(metric, point["value"])
    low, high = (value if point[end] is None else chart_value(metric, point[end]) for end in ("low", "high"))
    between = "" if point["low"] is None else f"{written(metric, point['low'])} to {written(metric, point['high'])}"
    role = "reference" if point["reference"] else "on the Pareto front" if point["front"] else "dominated"
    return {
        "name": point["name"], "x": point["size"] * 1e-6, "y": value, "low": low, "high": high, "role": role,
        "front": point["front"], "label": point["name"] if role != "dominated" or point["label"] else "",
        "size": written("bytes", point["size"]), "text": written(metric, point["value"]),
        "between": between or "none: not sampled",
    }  # fmt: skip


def waterfall(metric: str, steps: Sequence[Mapping[str, Any]]) -> Spec:
    """What each step cost. Steps: name, start, end, change, word (better, worse, no difference shown, start), text."""
    import altair as alt

    rows = [{**step, "order": at} for at, step in enumerate(steps)]
    words = ["better", "worse", "no difference shown", "unknown"]
    colour = alt.Color("word:N", scale=alt.Scale(domain=words, range=[var("c3"), var("c2"), var("c4"), var("c5")]))
    order: Any = [step["name"] for step in steps]
    y = alt.Y("name:N", sort=order, title=None)
    tips = tips_of(name="step", text="change", between="95 % interval", level=measure(metric).title, word="reading")
    values = [row[key] for row in rows for key in ("start", "end")]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    scale = alt.Scale(zero=False, domain=[low - 0.04 * span, high + 0.42 * span], nice=False)
    base = alt.Chart(inline(rows)).encode(y=y)
    layers = [
        base.mark_bar(height={"band": 0.62}).encode(
            x=alt.X("start:Q", title=axis_title(metric), scale=scale), x2="end:Q", color=colour, tooltip=tips
        ),
        base.mark_text(align="left", dx=6).encode(x="right:Q", text="text:N", tooltip=tips),
    ]
    said = "; ".join(f"{row['name']}: {row['text']}, {row['word']}" for row in rows)
    return finished(alt.layer(*layers), f"Quality waterfall of {measure(metric).title}: {said}.", 34 * len(rows) + 20)


def confusion(truths: Sequence[str], found: Sequence[str], counts: Sequence[Mapping[str, Any]]) -> Spec:
    """Which class was taken for which. Counts: truth, said, n, share (of the truth's)."""
    import altair as alt

    x = alt.X("said:N", sort=list(found), title="said", axis=alt.Axis(labelAngle=0))
    y = alt.Y("truth:N", sort=list(truths), title="is")
    tips = [
        alt.Tooltip("truth:N", title="is"),
        alt.Tooltip("said:N"),
        alt.Tooltip("n:Q"),
        alt.Tooltip("share:Q", format=".1%"),
    ]
    base = alt.Chart(inline(list(counts))).encode(x=x, y=y, tooltip=tips)
    opacity = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.75]), legend=None)
    layers = [base.mark_rect(color=var("c1")).encode(opacity=opacity), base.mark_text().encode(text="n:N")]
    said = "; ".join(f"{item['truth']} taken for {item['said']}: {item['n']}" for item in counts if item["n"])
    return finished(alt.layer(*layers), f"Confusion: {said}.", 40 * len(truths) + 20)


def outcomes(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Wins, ties and losses of each candidate against the reference. Rows: name, outcome, share, text."""
    import altair as alt

    words = ["win", "tie", "loss"]
    colour = alt.Color("outcome:N", scale=alt.Scale(domain=words, range=[var("c3"), var("c5"), var("c2")]))
    order: Any = list(dict.fromkeys(row["name"] for row in rows))
    ranked = [{**row, "rank": words.index(row["outcome"])} for row in rows]
    chart = alt.Chart(inline(ranked)).mark_bar(height={"band": 0.6}).encode(
        y=alt.Y("name:N", sort=order, title=None), color=colour, order="rank:Q",
        x=alt.X("share:Q", title="share of comparisons", stack="zero", axis=alt.Axis(format="%")),
        tooltip=tips_of(name="candidate", outcome="", text="share"),
    )  # fmt: skip
    said = "; ".join(f"{row['name']} {row['outcome']} {row['text']}" for row in rows)
    return finished(chart, f"Judged against the reference: {said}.", 34 * len(order) + 20)


def history(metric: str, points: Sequence[Mapping[str, Any]]) -> Spec:
    """A metric over time. Points: name, time (RFC 3339), value, digest."""
    import altair as alt

    rows = [
        {**point, "y": chart_value(metric, point["value"]), "text": written(metric, point["value"])} for point in points
    ]
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    colours = [var(f"c{1 + at % 5}") for at in range(len(names))]
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    colour = alt.Color(
        "name:N", scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(columns=3, symbolLimit=12)
    )
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=[shapes[at % 6] for at in range(len(names))]))
    days = {str(point["time"])[:10] for point in points}
    axis = alt.Axis(format="%Y-%m-%d" if len(days) > 3 else "%m-%d %H:%M", tickCount=5)
    x = alt.X("time:T", title="built (UTC)", scale=alt.Scale(type="utc", padding=12), axis=axis)
    y = alt.Y("y:Q", title=axis_title(metric), **axis_of([row["y"] for row in rows]))
    tips = tips_of(name="target", time="built", text=measure(metric).title, digest="artifact")
    base = alt.Chart(inline(rows)).encode(x=x, y=y, color=colour)
    layers = [
        base.mark_line(strokeWidth=1.5, opacity=0.7),
        base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape, tooltip=tips),
    ]
    return finished(alt.layer(*layers), f"{measure(metric).title} over time of {', '.join(names)}.", HEIGHT)
