"""What lies in artifacts and receipts beside a report's rows: curves, funnels, times, answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.view.page.book import Entry, Score
from ingot.view.page.facts import Page
from ingot.view.runtimes import timed

Json = Mapping[str, Any]
Point = tuple[float, float]

#: A line of a chart has at most so many points; more are averaged.
_POINTS = 300
_FUNNEL = {
    "documents_read": "read",
    "documents_same_answers": "answers alike",
    "documents_too_short": "too short",
    "documents_too_long": "too long",
    "documents_exact_duplicates": "exact duplicates",
    "documents_near_duplicates": "near-duplicates",
    "documents_over_limit": "over the limit",
}
_SIDES = {"documents_train": "to train on", "documents_eval": "held out"}
#: What ``calibrate`` calls its scalings, in words.
_SCALINGS = {"before": "as it is", "temperature": "temperature", "platt": "Platt"}
_TIMES = ("first_token_s", "token_p50_s", "token_p95_s", "token_p99_s")


@dataclass(frozen=True)
class Curve:
    """The loss of one training by step."""

    entry: Entry
    unit: str
    train: tuple[Point, ...]
    held: tuple[Point, ...]
    kept: int | None


@dataclass(frozen=True)
class Funnel:
    """How a data set became what it is: (what, how many documents, the entry's metric), the dropped ones negative."""

    entry: Entry
    steps: tuple[tuple[str, Score], ...]
    sides: tuple[tuple[str, Score], ...]


@dataclass(frozen=True)
class Runtime:
    """The times of one way to run one candidate; ``is_baseline``: another runtime, measured beside it in turns."""

    candidate: str
    name: str
    scores: Mapping[str, Score]
    is_baseline: bool


@dataclass(frozen=True)
class Reliability:
    """How often a model was right by how sure it was: panels by name, each with bins (confidence, accuracy, n)."""

    entry: Entry
    model: str
    panels: Mapping[str, tuple[float, tuple[tuple[float, float, int], ...]]]


def curves(page: Page) -> Iterator[Curve | Entry]:
    """The curves of everything in the chain that was trained; the entry alone where its artifact is not whole."""
    for node in page.lineage.nodes.values():
        entry = node.entry
        if entry is None or not any(file["path"] == "training.json" for file in entry.receipt["files"]):
            continue
        found = page.book.read(entry, "training.json")
        yield entry if found is None else _curve(entry, found)


def _curve(entry: Entry, found: Json) -> Curve:
    train = [(float(item["step"]), float(item["loss"])) for item in found.get("train", ())]
    held = [(float(item["step"]), float(item["loss"])) for item in found.get("eval", ())]
    return Curve(entry, str(found.get("loss_unit", "")), tuple(thinned(train)), tuple(held), found.get("kept_step"))


def thinned(points: Sequence[Point], most: int = _POINTS) -> list[Point]:
    """At most so many points: the means of runs of equal length. What is no number is left out."""
    points = [point for point in points if math.isfinite(point[1])]
    size = max(1, math.ceil(len(points) / most))
    runs = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(step for step, _ in run) / len(run), sum(value for _, value in run) / len(run)) for run in runs]


def funnels(page: Page) -> Iterator[Funnel]:
    """The data sets of the chain that counted their documents."""
    for node in page.lineage.nodes.values():
        if node.entry is not None and node.kind == "dataset":
            steps = tuple(_counted(node.entry, _FUNNEL))
            if steps:
                yield Funnel(node.entry, steps, tuple(_counted(node.entry, _SIDES)))


def _counted(entry: Entry, names: Mapping[str, str]) -> Iterator[tuple[str, Score]]:
    for name, words in names.items():
        if name in entry.receipt["metrics"]:
            yield words, Score(name, entry.receipt["metrics"][name], entry)


def runtimes(page: Page) -> Iterator[Runtime]:
    """What the builds of the candidates measured of their speed, each beside its baselines."""
    for row in page.rows:
        if row.entry is None:
            continue
        notes = timed(row.entry.receipt)
        named = {"": str(notes.get("runtime", "")), **{f"{name}_": str(name) for name in notes.get("baselines", {})}}
        metrics = row.entry.receipt["metrics"]
        for prefix, name in named.items():
            found = {
                key: Score(prefix + key, metrics[prefix + key], row.entry) for key in _TIMES if prefix + key in metrics
            }
            if found:
                yield Runtime(row.name, name, found, bool(prefix))


def reliabilities(page: Page) -> Iterator[Reliability]:
    """What targets of the kind ``calibrate`` found of this report's candidates."""
    rows = {row.digest: row for row in page.rows}
    for target in sorted(page.book.project.index.latest):
        if target.partition(":")[0] != page.spec:
            continue
        receipt = page.book.lookup.newest(target)
        if receipt is None or receipt["kind"] != "calibrate":
            continue
        entry = page.book.take(receipt)
        model = next((digest for role, _, digest in entry.inputs() if role == "model"), "")
        found = page.book.read(entry, "calibration.json")
        if found is not None and model in rows:
            yield Reliability(entry, rows[model].name, dict(_panels(found)))


def _panels(found: Json) -> Iterator[tuple[str, tuple[float, tuple[tuple[float, float, int], ...]]]]:
    for name, panel in found["reliability"].items():
        bins = tuple((item["confidence"], item["accuracy"], item["n"]) for item in panel["bins"] if item["n"])
        yield _SCALINGS.get(name, name), (float(panel["ece"]), bins)
