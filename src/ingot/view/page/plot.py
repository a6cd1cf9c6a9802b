"""What all charts have in common: sizes, colours, axes, tips. Altair checks what is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ingot.view.page.palette import var

Spec = dict[str, Any]
WIDTH, HEIGHT = 640, 300
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"
#: From this factor between the largest and the smallest value on, an axis is logarithmic.
_WIDE = 60.0


def finished(chart: Any, description: str, height: float | None = None) -> Spec:
    """A chart as a Vega-Lite specification that Altair has checked, in the page's colours and sizes."""
    text = {"labelColor": var("soft"), "titleColor": var("ink"), "labelFontSize": 12, "titleFontSize": 12}
    lines = {"gridColor": var("grid"), "domainColor": var("line"), "tickColor": var("line"), "titleFontWeight": 600}
    sized = chart.properties(width=WIDTH, description=description)
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


def inline(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as the data of a chart."""
    import altair as alt

    return alt.InlineData(values=list(rows))


def is_wide(values: Sequence[float]) -> bool:
    """Whether values are positive and so far apart that an axis is logarithmic."""
    return min(values, default=0) > 0 and max(values) / min(values) > _WIDE


def axis_of(values: Sequence[float], *, names: bool = False) -> dict[str, Any]:
    """The scale and ticks of values; with room on the right where ``names`` stand beside points."""
    import altair as alt

    low, high = (math.log(end) if is_wide(values) else end for end in (min(values), max(values)))
    span = (high - low) or max(abs(high), 1.0) * 0.2
    ends = [low - 0.08 * span, high + (0.3 if names else 0.08) * span]
    if is_wide(values):
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


def from_zero(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """A scale from nought, with room for a number beside the longest bar."""
    import altair as alt

    most = max((row[key] for row in rows), default=0) or 1
    return alt.Scale(domain=[0, most * 1.16], nice=False)


def tips_of(**fields: str) -> list[Any]:
    """What is shown when a mark is pointed at: fields with their titles."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in fields.items()]
