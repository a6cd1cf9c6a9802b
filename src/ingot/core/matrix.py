"""``matrix:``: a target's own axes, and the label that each value has in a task's name."""

from __future__ import annotations

from typing import Any

from ingot.core.digest import canonical_json
from ingot.core.instances import MAX_INSTANCES
from ingot.core.names import is_label, suggestion, twins
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.yaml_reader import Path


class Axis:
    """One parameter and its labelled values, as written; ``paths`` are where each value is written."""

    def __init__(self, param: str, labels: tuple[str, ...], values: tuple[Any, ...], paths: tuple[Path, ...]) -> None:
        self.param, self.labels, self.values, self.paths = param, labels, values, paths


def read_matrix(
    value: object, path: Path, fields: tuple[str, ...], params: set[str], problems: Problems
) -> list[Axis] | None:
    """The axes of a target, or None when they cannot be told. ``params`` are those that it also sets itself."""
    if not isinstance(value, dict) or not value:
        problems.add(path, "E-SPEC-MATRIX", "a matrix is a mapping of parameters to lists of values")
        return None
    axes: list[Axis | None] = []
    for param, values in value.items():
        here = (*path, param)
        if param not in fields:
            what = f"unknown parameter {shorten(param)!r}"
            problems.add(here, "E-SPEC-MATRIX", what, suggestion(param, fields), key=True)
            axes.append(None)
            continue
        if param in params:
            what = f"{param!r} is set both in the matrix and beside it"
            problems.add(here, "E-SPEC-MATRIX", what, "remove one of the two", key=True)
        axes.append(_axis(param, values, here, problems))
    found = [axis for axis in axes if axis is not None]
    count = 1
    for axis in found:
        count *= len(axis.labels)
    if count > MAX_INSTANCES:
        problems.add(path, "E-SPEC-MATRIX", f"{count:,} combinations; a target has at most {MAX_INSTANCES:,}")
        return None
    return found if len(found) == len(axes) else None


def _axis(param: str, values: object, path: Path, problems: Problems) -> Axis | None:
    if not isinstance(values, list) or not values:
        problems.add(path, "E-SPEC-MATRIX", "needs a list of at least one value")
        return None
    labels: dict[str, int] = {}
    items: list[tuple[Any, Path]] = []
    for index, item in enumerate(values):
        here = (*path, index)
        label, value, where = _label(item, here)
        if label is None:
            what = "a value that cannot stand in a name (1 to 40 of A-Z a-z 0-9 . _ -)"
            problems.add(here, "E-SPEC-MATRIX", what, "write it as {label: value}")
        elif label in labels:
            problems.add(here, "E-SPEC-MATRIX", f"the label {label!r} is used twice")
        elif twin := twins([*labels, label]):
            problems.add(here, "E-SPEC-MATRIX", f"the label {label!r} differs only by case from {twin[0]!r}")
        else:
            labels[label] = index
            items.append((value, where))
    if len(labels) != len(values):
        return None
    return Axis(param, tuple(labels), tuple(value for value, _ in items), tuple(where for _, where in items))


def _label(item: object, path: Path) -> tuple[str | None, Any, Path]:
    """(label or None, value, where the value is written) of one item of an axis."""
    if isinstance(item, dict):
        if len(item) != 1:
            return None, item, path
        label, value = next(iter(item.items()))
        return (label if is_label(label) else None), value, (*path, label)
    if isinstance(item, list):
        return None, item, path
    text = item if isinstance(item, str) else canonical_json(item).decode("ascii")
    return (text if is_label(text) else None), item, path
