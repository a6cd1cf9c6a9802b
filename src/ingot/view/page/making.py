"""Charts of how results were made and how fast they are: loss, documents, times, speeds, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ingot.view.page.measures import axis_title, chart_value, measure, written
from ingot.view.page.palette import var
from ingot.view.page.plot import HEIGHT, Spec, finished, from_zero, inline, tips_of

if TYPE_CHECKING:
    from ingot.view.page.details import Curve, Funnel, Point, Reliability, Runtime

_PERCENTILES = ("token_p50_s", "token_p95_s", "token_p99_s")


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
        return alt.Chart(inline(rows)).mark_line(**mark).encode(x=x, y=y, color=colour, tooltip=tips)

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
    return finished(alt.layer(*layers), f"Loss by step of {curve.entry.target}: {_course(curve)}.", 260)


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
        alt.Chart(inline(folded))
        .mark_bar(height={"band": 0.62})
        .encode(
            x=alt.X("start:Q", title="documents", scale=from_zero(folded, "end")),
            x2="end:Q",
            y=y,
            color=colour,
            tooltip=tips_of(name="sieve", told=""),
        )
    )
    labels = [{**row, "label": f"{row['kept']:,.0f}", "at": row["kept"] + row["took"]} for row in rows]
    texts = alt.Chart(inline(labels)).mark_text(align="left", dx=6).encode(x="at:Q", y=y, text="label:N")
    said = "; ".join(f"{row['name']}: {row['kept']:,.0f}{', ' + row['told'] if row['told'] else ''}" for row in rows)
    return finished(alt.layer(bars, texts), f"Documents of {found.entry.target}: {said}.", 30 * len(rows) + 20)


def latency(found: Sequence[Runtime]) -> Spec:
    """The seconds a token of each candidate: the median, and up to the 95th and 99th percentile."""
    import altair as alt

    rows = [
        {
            "name": f"{each.candidate}, {each.name}" if each.is_baseline else each.candidate,
            **{key: chart_value(key, each.scores[key].value) for key in _PERCENTILES},
            "text": ", ".join(written(key, each.scores[key].value) for key in _PERCENTILES),
            "of": "a baseline" if each.is_baseline else "the export",
        }
        for each in found
    ]
    order: Any = [row["name"] for row in rows]
    base = alt.Chart(inline(rows)).encode(y=alt.Y("name:N", sort=order, title=None))
    tips = tips_of(name="", text="p50, p95, p99")
    domain = ["the export", "a baseline"]
    colour = alt.Color("of:N", scale=alt.Scale(domain=domain, range=[var("c1"), var("c5")]))
    x = alt.X("token_p50_s:Q", title="ms a token: point p50, bar to p95, line to p99", scale=alt.Scale(zero=True))
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=x, x2="token_p99_s:Q", color=colour, tooltip=tips),
        base.mark_bar(height=8).encode(x="token_p50_s:Q", x2="token_p95_s:Q", color=colour, tooltip=tips),
        base.mark_point(filled=True, size=90, opacity=1).encode(x="token_p50_s:Q", color=colour, tooltip=tips),
    ]
    said = "; ".join(f"{row['name']} {row['text']}" for row in rows)
    return finished(alt.layer(*layers), f"Time a token (p50, p95, p99): {said}.", 34 * len(rows) + 20)


def speeds(metric: str, rows: Sequence[Mapping[str, Any]]) -> Spec:
    """A bar a candidate. Rows: name, value."""
    import altair as alt

    listed = [{**row, "text": written(metric, row["value"])} for row in rows]
    order: Any = [row["name"] for row in listed]
    base = alt.Chart(inline(listed)).encode(
        y=alt.Y("name:N", sort=order, title=None),
        x=alt.X("value:Q", title=axis_title(metric), scale=from_zero(listed, "value")),
        tooltip=tips_of(name="candidate", text=measure(metric).title),
    )  # fmt: skip
    layers = [
        base.mark_bar(height={"band": 0.6}, color=var("c1")),
        base.mark_text(align="left", dx=6).encode(text="text:N"),
    ]
    said = "; ".join(f"{row['name']} {row['text']}" for row in listed)
    return finished(alt.layer(*layers), f"{measure(metric).title}: {said}.", 30 * len(listed) + 20)


def reliability(found: Reliability) -> Spec:
    """How often the model was right, by how sure it was; a bin of few tokens has a small point."""
    import altair as alt

    rows = [
        {"panel": f"{name} (error {ece:.4f})", "sure": sure, "right": right, "n": n}
        for name, (ece, bins) in found.panels.items() for sure, right, n in bins
    ]  # fmt: skip
    panels = list(dict.fromkeys(str(row["panel"]) for row in rows))
    colours = [var(name) for name in ("c1", "c2", "c3")][: len(panels)]
    ends = alt.Scale(domain=[0, 1])
    colour = alt.Color("panel:N", scale=alt.Scale(domain=panels, range=colours))
    line = alt.Chart(inline([{"sure": 0.0, "right": 0.0}, {"sure": 1.0, "right": 1.0}])).mark_line(
        strokeDash=[4, 4], color=var("soft")
    )
    x, y = alt.X("sure:Q", title="how sure it was", scale=ends), alt.Y("right:Q", title="how often right", scale=ends)
    tips = [
        alt.Tooltip("panel:N", title="scaling"), alt.Tooltip("sure:Q", title="how sure", format=".3f"),
        alt.Tooltip("right:Q", title="how often right", format=".3f"), alt.Tooltip("n:Q", title="tokens", format=","),
    ]  # fmt: skip
    drawn = alt.Chart(inline(rows)).encode(x=x, y=y, color=colour, tooltip=tips)
    size = alt.Size("n:Q", scale=alt.Scale(range=[12, 160]), legend=None)
    layers = [line.encode(x=x, y=y), drawn.mark_line(), drawn.mark_point(filled=True, opacity=1).encode(size=size)]
    said = "; ".join(f"{name}: error {ece:.4f}" for name, (ece, _) in found.panels.items())
    return finished(alt.layer(*layers), f"Reliability of {found.model}: {said}.", HEIGHT)
