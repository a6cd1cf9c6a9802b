"""A lineage as a picture: layers from left to right, each box a link to what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ingot.view.page.html import Html, join, link, tag
from ingot.view.page.lineage import Edge, Lineage, Node

_BOX = (190, 54)
_GAP = (66, 14)
#: The height of the lane of an edge that passes a column by.
_LANE = 12
_MARGIN = 8
#: Rounds of moving each box and lane to the middle of its neighbours.
_SWEEPS = 12
_NAME, _SMALL = 24, 33

#: A box (layer -1) or, with its layer, the lane in which edges from a box pass a layer.
Slot = tuple[str, int]
Places = Mapping[Slot, tuple[float, float]]


def draw(lineage: Lineage, hrefs: Mapping[str, str]) -> Html:
    """The picture; ``hrefs`` say where a digest is told of."""
    layers = lineage.layers()
    ways = [_way(edge, layers) for edge in lineage.edges]
    places = _places(layers, ways)
    width = max((x for x, _ in places.values()), default=0.0) + _BOX[0] + _MARGIN
    height = max((y for _, y in places.values()), default=0.0) + _BOX[1] + _MARGIN
    edges = [_edge(edge, [places[slot] for slot in way]) for edge, way in zip(lineage.edges, ways, strict=True)]
    boxes = [_box(node, places[_slot(node.digest)], hrefs.get(node.digest)) for node in lineage.nodes.values()]
    words = f"Lineage of {len(lineage.nodes)} results; the table below lists them with what each was built from."
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    return tag("svg", tag("title", words), edges, boxes, role="group", xmlns="http://www.w3.org/2000/svg", **size)


def _slot(digest: str) -> Slot:
    return digest, -1


def _way(edge: Edge, layers: Mapping[str, int]) -> list[Slot]:
    """What an edge passes: its source, a lane in each layer between, its goal."""
    between = range(layers[edge.source] + 1, layers[edge.goal])
    return [_slot(edge.source), *((edge.source, layer) for layer in between), _slot(edge.goal)]


def _places(layers: Mapping[str, int], ways: Sequence[Sequence[Slot]]) -> dict[Slot, tuple[float, float]]:
    """The upper left corner of each slot: columns by layer; in a column, near what it is connected with."""
    found: dict[int, dict[Slot, None]] = {}
    for digest, layer in layers.items():
        found.setdefault(layer, {})[_slot(digest)] = None
    near: dict[Slot, list[Slot]] = {}
    for way in ways:
        for slot in way[1:-1]:
            found[slot[1]][slot] = None
        for one, other in pairwise(way):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    columns = [list(found[layer]) for layer in sorted(found)]
    at = _stacked(columns)
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 else reversed(columns):
            middle = {slot: _mean([at[other] for other in near.get(slot, ())], at[slot]) for slot in column}
            column.sort(key=lambda slot, known=middle: (known[slot], slot))  # type: ignore[misc]
            at = _stacked(columns)
    step = _BOX[0] + _GAP[0]
    return {
        slot: (_MARGIN + number * step, _MARGIN + at[slot] - _tall(slot) / 2)
        for number, column in enumerate(columns) for slot in column
    }  # fmt: skip


def _tall(slot: Slot) -> float:
    return _LANE if slot[1] >= 0 else _BOX[1]


def _stacked(columns: Sequence[Sequence[Slot]]) -> dict[Slot, float]:
    """The middle of each slot from above, columns one beside another with their middles level."""
    heights = [sum(_tall(slot) + _GAP[1] for slot in column) - _GAP[1] for column in columns]
    found = {}
    for column, height in zip(columns, heights, strict=True):
        y = (max(heights) - height) / 2
        for slot in column:
            found[slot] = y + _tall(slot) / 2
            y += _tall(slot) + _GAP[1]
    return found


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _edge(edge: Edge, corners: Sequence[tuple[float, float]]) -> Html:
    """A curve from box to box, level through the lanes between."""
    last = len(corners) - 1
    middles = [y + (_BOX[1] if at in (0, last) else _LANE) / 2 for at, (_, y) in enumerate(corners)]
    x = corners[0][0] + _BOX[0]
    path = [f"M{x:.1f} {middles[0]:.1f}"]
    for (left, _), y0, y1 in zip(corners[1:], middles, middles[1:], strict=False):
        bend = (x + left) / 2
        path.append(f"C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {left:.1f} {y1:.1f}")
        x = left + _BOX[0]
        path.append(f"H{x:.1f}" if left != corners[-1][0] else "")
    return tag("path", tag("title", f"as {edge.role}"), class_="edge", d="".join(path))


def _box(node: Node, place: tuple[float, float], href: str | None) -> Html:
    x, y = place
    entry = node.entry
    state = "" if entry is None or entry.presence == "present" else f", {entry.presence}"
    inside = join(
        tag("title", f"{node.name}: {node.kind}{state}, {node.digest}"),
        tag("rect", class_="box", x=f"{x:.1f}", y=f"{y:.1f}", width=_BOX[0], height=_BOX[1], rx=7),
        tag("text", _short(node.name, _NAME), x=f"{x + 10:.1f}", y=f"{y + 22:.1f}"),
        tag(
            "text",
            _short(f"{node.kind}{state} {node.digest[:12]}", _SMALL),
            class_="small",
            x=f"{x + 10:.1f}",
            y=f"{y + 41:.1f}",
        ),
    )
    dashed = "dashed" if entry is None or state else None
    return tag("g", inside if href is None else link(href, inside), class_=dashed)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
