"""Charts as Vega-Lite, built and checked by Altair: each with what it says in words. Colours are the page's variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ingot.view.page.measures import axis_title, chart_value, measure, written
from ingot.view.page.palette import var

if TYPE_CHECKING:
    from ingot.view.page.details import Curve, Funnel, Point, Reliability, Runtime

Spec = dict[str, Any]
_WIDTH, _HEIGHT = 640, 300
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"
#: From this factor between the largest and the smallest value on, an axis is logarithmic.
_WIDE = 60.0
#: The width of a plot for which names are placed: the narrowest that is common.
_NARROW = 330


def _finished(chart: Any, description: str, height: float | None = None) -> Spec:
    """A chart as a Vega-Lite specification that Altair has checked, in the page's colours and sizes."""
    text = {"labelColor": var("soft"), "titleColor": var("ink"), "labelFontSize": 12, "titleFontSize": 12}
    lines = {"gridColor": var("grid"), "domainColor": var("line"), "tickColor": var("line"), "titleFontWeight": 600}
    sized = chart.properties(width=_WIDTH, description=description)
    spec: Spec = (sized if height is None else sized.properties(height=height)).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["config"] = {
        "background": "transparent",
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {**text, **lines, "labelLimit": 180, "labelOverlap": "greedy"},
        "axisQuantitative": {"tickCount": 6},
        "legend": {**text, "orient": "top", "title": None, "labelLimit": 260},
        "text": {"color": var("ink"), "fontSize": 12},
        "rule": {"color": var("soft")},
    }
    return spec


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=list(rows))


def _is_wide(values: Sequence[float]) -> bool:
    """Whether values are positive and so far apart that an axis is logarithmic."""
    return min(values, default=0) > 0 and max(values) / min(values) > _WIDE


def _axis(values: Sequence[float], *, names: bool = False) -> dict[str, Any]:
    """The scale and ticks of values; with room on the right where ``names`` stand beside points."""
    import altair as alt

    low, high = (math.log(end) if _is_wide(values) else end for end in (min(values), max(values)))
    span = (high - low) or max(abs(high), 1.0) * 0.2
    ends = [low - 0.08 * span, high + (0.3 if names else 0.08) * span]
    if _is_wide(values):
        scale = alt.Scale(type="log", domain=[math.exp(end) for end in ends], nice=False)
        return {"scale": scale, "axis": alt.Axis(values=_ticks(math.exp(ends[0]), math.exp(ends[1])), format="~g")}
    return {"scale": alt.Scale(zero=False, domain=ends, nice=False), "axis": alt.Axis(tickCount=6)}


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two ends; where these are few, twice and five times each too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) >= 4:
            break
    return found


def _from_zero(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """A scale from nought, with room for a number beside the longest bar."""
    import altair as alt

    most = max((row[key] for row in rows), default=0) or 1
    return alt.Scale(domain=[0, most * 1.16], nice=False)


def _tips(**fields: str) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in fields.items()]


def quality(metric: str, points: Sequence[Mapping[str, Any]]) -> Spec:
    """Quality against size. Points: name, size (bytes), value, low, high (or None), front, role."""
    import altair as alt

    rows = [_quality_row(metric, point) for point in points]
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["x"])
    ends = [row[key] for row in rows for key in ("y", "low", "high")]
    _place_labels(rows, ends)
    x = alt.X("x:Q", title="size, MB", **_axis([row["x"] for row in rows], names=True))
    y = alt.Y("y:Q", title=axis_title(metric), **_axis(ends))
    roles = ["on the Pareto front", "dominated", "reference"]
    colour = alt.Color("role:N", scale=alt.Scale(domain=roles, range=[var("c1"), var("c5"), var("c2")]))
    shape = alt.Shape("role:N", scale=alt.Scale(domain=roles, range=["circle", "cross", "diamond"]))
    base = alt.Chart(_data(rows)).encode(x=x)
    tips = _tips(name="candidate", size="size", text=measure(metric).title, between="95 % interval", role="")
    step: Any = "step-after"
    line = alt.Chart(_data(front)).mark_line(interpolate=step, strokeDash=[5, 4], color=var("c1"), opacity=0.7)
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
    return _finished(alt.layer(*layers), f"Quality against size: {best}. {named}.", _HEIGHT)


def _place_labels(rows: Sequence[dict[str, Any]], ends: Sequence[float]) -> None:
    """Put each name above or below its point, where no other stands; one that finds no room is left to the pointer."""
    across = _spread([row["x"] for row in rows], [row["x"] for row in rows], 1.38)
    up = _spread([row["y"] for row in rows], ends, 1.16)
    taken: list[tuple[float, float, float]] = []
    for row, x, y in zip(rows, across, up, strict=True):
        left, right = x * _NARROW, x * _NARROW + 7.0 * len(row["label"]) + 12
        row["dy"] = 0
        for dy in (-9, 13, -22, 26, -35, 39):
            at = (1 - y) * _HEIGHT + dy
            if all(right < begin or end < left or abs(at - other) > 12 for begin, end, other in taken):
                taken.append((left, right, at))
                row["dy"] = dy
                break
        else:
            row["label"] = ""


def _spread(values: Sequence[float], ends: Sequence[float], room: float) -> list[float]:
    """Where values lie between the ends of an axis, 0 to 1, roughly as it will be drawn."""
    wide = _is_wide(ends)
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
    words = ["start", "better", "worse", "no difference shown"]
    colour = alt.Color("word:N", scale=alt.Scale(domain=words, range=[var("c5"), var("c3"), var("c2"), var("c4")]))
    order: Any = [step["name"] for step in steps]
    y = alt.Y("name:N", sort=order, title=None)
    tips = _tips(name="step", text="change", between="95 % interval", level=measure(metric).title, word="reading")
    values = [row[key] for row in rows for key in ("start", "end")]
    scale = alt.Scale(
        zero=min(values) <= 0 or any(row["word"] == "start" and row["start"] == 0 for row in rows), nice=True
    )
    base = alt.Chart(_data(rows)).encode(y=y)
    layers = [
        base.mark_bar(height={"band": 0.62}).encode(
            x=alt.X("start:Q", title=axis_title(metric), scale=scale), x2="end:Q", color=colour, tooltip=tips
        ),
        base.mark_text(align="left", dx=6).encode(x="right:Q", text="text:N", tooltip=tips),
    ]
    said = "; ".join(f"{row['name']}: {row['text']}, {row['word']}" for row in rows)
    return _finished(alt.layer(*layers), f"Quality waterfall of {measure(metric).title}: {said}.", 34 * len(rows) + 20)


def loss(curve: Curve) -> Spec:
    """The loss by step: of each batch, smoothed, and of held-out documents."""
    import altair as alt

    train = [{"step": step, "loss": value, "line": "each step"} for step, value in curve.train]
    smooth = [{"step": step, "loss": value, "line": "training, smoothed"} for step, value in smoothed(curve.train)]
    held = [{"step": step, "loss": value, "line": "held out"} for step, value in curve.held]
    names = ["each step", "training, smoothed", "held out"]
    colour = alt.Color("line:N", scale=alt.Scale(domain=names, range=[var("c5"), var("c1"), var("c2")]))
    x = alt.X("step:Q", title="step")
    y = alt.Y("loss:Q", title=curve.unit, scale=alt.Scale(zero=False, nice=True))
    tips = [
        alt.Tooltip("line:N", title=""), alt.Tooltip("step:Q", format=".0f"), alt.Tooltip("loss:Q", format=".4f"),
    ]  # fmt: skip

    def drawn(rows: list[dict[str, Any]], **mark: Any) -> Any:
        return alt.Chart(_data(rows)).mark_line(**mark).encode(x=x, y=y, color=colour, tooltip=tips)

    layers = [
        drawn(train, strokeWidth=1, opacity=0.45),
        drawn(smooth, strokeWidth=2.5),
        drawn(
            held,
            strokeWidth=2 if len(held) > 2 else 0,
            strokeDash=[6, 4],
            point=alt.OverlayMarkDef(filled=True, size=70),
        ),
    ]
    return _finished(alt.layer(*layers), f"Loss by step of {curve.entry.target}: {_course(curve)}.", 260)


def _course(curve: Curve) -> str:
    parts = []
    if curve.train:
        parts.append(f"training {curve.train[0][1]:.3g} to {curve.train[-1][1]:.3g} {curve.unit}")
    if curve.held:
        parts.append(f"held out {curve.held[0][1]:.3g} to {curve.held[-1][1]:.3g}")
    return ", ".join(parts)


def smoothed(points: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """The exponentially weighted mean of each value and those before it, without the pull of its start to zero."""
    found, mean, total = [], 0.0, 0.0
    for step, value in points:
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        found.append((step, mean / total))
    return found


def funnel(found: Funnel) -> Spec:
    """How many documents were left after each sieve, what each one took, and how the rest was divided."""
    import altair as alt

    rows: list[dict[str, Any]] = []
    left = 0.0
    for words, score in found.steps:
        if words != "read" and not score.value:
            continue
        took = 0.0 if words == "read" else score.value
        left = score.value if words == "read" else left - took
        rows.append({"name": words, "kept": left, "took": took, "told": f"{took:,.0f} taken out" if took else ""})
    rows += [{"name": words, "kept": score.value, "took": 0.0, "told": ""} for words, score in found.sides]
    folded = [
        {"name": row["name"], "documents": row[key], "part": part, "start": 0.0 if key == "kept" else row["kept"],
         "end": row["kept"] + (0.0 if key == "kept" else row["took"]), "told": f"{row[key]:,.0f} documents {part}"}
        for row in rows for key, part in (("kept", "left"), ("took", "taken out"))
    ]  # fmt: skip
    order: Any = [row["name"] for row in rows]
    colour = alt.Color("part:N", scale=alt.Scale(domain=["left", "taken out"], range=[var("c1"), var("c2")]))
    y = alt.Y("name:N", sort=order, title=None)
    bars = (
        alt.Chart(_data(folded))
        .mark_bar(height={"band": 0.62})
        .encode(
            x=alt.X("start:Q", title="documents", scale=_from_zero(folded, "end")),
            x2="end:Q",
            y=y,
            color=colour,
            tooltip=_tips(name="sieve", told=""),
        )
    )
    labels = [{**row, "label": f"{row['kept']:,.0f}", "at": row["kept"] + row["took"]} for row in rows]
    texts = alt.Chart(_data(labels)).mark_text(align="left", dx=6).encode(x="at:Q", y=y, text="label:N")
    said = "; ".join(f"{row['name']}: {row['kept']:,.0f}{', ' + row['told'] if row['told'] else ''}" for row in rows)
    return _finished(alt.layer(bars, texts), f"Documents of {found.entry.target}: {said}.", 30 * len(rows) + 20)


def latency(found: Sequence[Runtime]) -> Spec:
    """The seconds a token of each candidate: the median, and up to the 95th and 99th percentile."""
    import altair as alt

    rows = [
        {
            "name": f"{each.candidate}, {each.name}" if each.is_baseline else each.candidate,
            **{key: chart_value(key, each.scores[key].value) for key in ("token_p50_s", "token_p95_s", "token_p99_s")},
            **{f"{key}_text": written(key, each.scores[key].value) for key in each.scores},
            "of": "a baseline" if each.is_baseline else "the export",
        }
        for each in found
    ]
    order: Any = [row["name"] for row in rows]
    base = alt.Chart(_data(rows)).encode(y=alt.Y("name:N", sort=order, title=None))
    tips = _tips(name="", token_p50_s_text="p50", token_p95_s_text="p95", token_p99_s_text="p99")
    domain = ["the export", "a baseline"]
    colour = alt.Color("of:N", scale=alt.Scale(domain=domain, range=[var("c1"), var("c5")]))
    x = alt.X("token_p50_s:Q", title="ms a token: point p50, bar to p95, line to p99", scale=alt.Scale(zero=True))
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=x, x2="token_p99_s:Q", color=colour, tooltip=tips),
        base.mark_bar(height=8).encode(x="token_p50_s:Q", x2="token_p95_s:Q", color=colour, tooltip=tips),
        base.mark_point(filled=True, size=90, opacity=1).encode(x="token_p50_s:Q", color=colour, tooltip=tips),
    ]
    said = "; ".join(f"{row['name']} {row['token_p50_s_text']}" for row in rows)
    return _finished(alt.layer(*layers), f"Time a token, median: {said}.", 34 * len(rows) + 20)


def speeds(metric: str, rows: Sequence[Mapping[str, Any]]) -> Spec:
    """A bar a candidate. Rows: name, value."""
    import altair as alt

    listed = [{**row, "text": written(metric, row["value"])} for row in rows]
    order: Any = [row["name"] for row in listed]
    base = alt.Chart(_data(listed)).encode(
        y=alt.Y("name:N", sort=order, title=None), x=alt.X("value:Q", title=axis_title(metric), scale=_from_zero(listed, "value")),
        tooltip=_tips(name="candidate", text=measure(metric).title),
    )  # fmt: skip
    layers = [
        base.mark_bar(height={"band": 0.6}, color=var("c1")),
        base.mark_text(align="left", dx=6).encode(text="text:N"),
    ]
    said = "; ".join(f"{row['name']} {row['text']}" for row in listed)
    return _finished(alt.layer(*layers), f"{measure(metric).title}: {said}.", 30 * len(listed) + 20)


def reliability(found: Reliability) -> Spec:
    """How often the model was right, by how sure it was."""
    import altair as alt

    rows = [
        {"panel": f"{name} (error {ece:.4f})", "sure": sure, "right": right, "n": n}
        for name, (ece, bins) in found.panels.items() for sure, right, n in bins
    ]  # fmt: skip
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    colours = [var(name) for name in ("c1", "c2", "c3")][: len(panels)]
    ends = alt.Scale(domain=[0, 1])
    colour = alt.Color("panel:N", scale=alt.Scale(domain=panels, range=colours))
    line = alt.Chart(_data([{"sure": 0.0, "right": 0.0}, {"sure": 1.0, "right": 1.0}])).mark_line(
        strokeDash=[4, 4], color=var("soft")
    )
    x, y = alt.X("sure:Q", title="how sure it was", scale=ends), alt.Y("right:Q", title="how often right", scale=ends)
    tips = [
        alt.Tooltip("panel:N", title=""), alt.Tooltip("sure:Q", format=".3f"), alt.Tooltip("right:Q", format=".3f"),
        alt.Tooltip("n:Q", title="tokens"),
    ]  # fmt: skip
    drawn = alt.Chart(_data(rows)).mark_line(point=alt.OverlayMarkDef(filled=True, size=60))
    layers = [line.encode(x=x, y=y), drawn.encode(x=x, y=y, color=colour, tooltip=tips)]
    said = "; ".join(f"{name}: error {ece:.4f}" for name, (ece, _) in found.panels.items())
    return _finished(alt.layer(*layers), f"Reliability of {found.model}: {said}.", _HEIGHT)


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
    base = alt.Chart(_data(list(counts))).encode(x=x, y=y, tooltip=tips)
    opacity = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.75]), legend=None)
    layers = [base.mark_rect(color=var("c1")).encode(opacity=opacity), base.mark_text().encode(text="n:N")]
    said = "; ".join(f"{item['truth']} taken for {item['said']}: {item['n']}" for item in counts if item["n"])
    return _finished(alt.layer(*layers), f"Confusion: {said}.", 40 * len(truths) + 20)


def outcomes(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Wins, ties and losses of each candidate against the reference. Rows: name, outcome, share, text."""
    import altair as alt

    words = ["win", "tie", "loss"]
    colour = alt.Color("outcome:N", scale=alt.Scale(domain=words, range=[var("c3"), var("c5"), var("c2")]))
    order: Any = list(dict.fromkeys(row["name"] for row in rows))
    ranked = [{**row, "rank": words.index(row["outcome"])} for row in rows]
    chart = alt.Chart(_data(ranked)).mark_bar(height={"band": 0.6}).encode(
        y=alt.Y("name:N", sort=order, title=None), color=colour, order="rank:Q",
        x=alt.X("share:Q", title="share of comparisons", stack="zero", axis=alt.Axis(format="%")),
        tooltip=_tips(name="candidate", outcome="", text="share"),
    )  # fmt: skip
    said = "; ".join(f"{row['name']} {row['outcome']} {row['text']}" for row in rows)
    return _finished(chart, f"Judged against the reference: {said}.", 34 * len(order) + 20)


def history(metric: str, points: Sequence[Mapping[str, Any]]) -> Spec:
    """A metric over time. Points: name, time (RFC 3339), value, digest."""
    import altair as alt

    rows = [
        {**point, "y": chart_value(metric, point["value"]), "text": written(metric, point["value"])} for point in points
    ]
    names = list(dict.fromkeys(row["name"] for row in rows))
    colours = [var(f"c{1 + at % 5}") for at in range(len(names))]
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    colour = alt.Color(
        "name:N", scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(columns=3, symbolLimit=12)
    )
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=[shapes[at % 6] for at in range(len(names))]))
    days = {str(point["time"])[:10] for point in points}
    axis = alt.Axis(format="%Y-%m-%d" if len(days) > 3 else "%m-%d %H:%M", tickCount=5)
    x = alt.X("time:T", title="built (UTC)", scale=alt.Scale(type="utc", padding=12), axis=axis)
    y = alt.Y("y:Q", title=axis_title(metric), **_axis([row["y"] for row in rows]))
    tips = _tips(name="target", time="built", text=measure(metric).title, digest="artifact")
    base = alt.Chart(_data(rows)).encode(x=x, y=y, color=colour)
    layers = [
        base.mark_line(strokeWidth=1.5, opacity=0.7),
        base.mark_point(filled=True, size=70, opacity=1).encode(shape=shape, tooltip=tips),
    ]
    return _finished(alt.layer(*layers), f"{measure(metric).title} over time of {', '.join(names)}.", _HEIGHT)
