"""``gates:`` as written: does each name something measured, and what are its limits. ``core/gates.py`` judges them."""

from __future__ import annotations

import re
from collections.abc import Collection

from ingot.core.complaints import describe, unknown_fields
from ingot.core.names import is_metric, nearest
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.yaml_reader import Path

_SIDES = ("max", "min")
_BOUNDS = ("value", "lower", "upper")

Gates = dict[str, dict[str, object]]


def read_gates(value: object, nodes: Collection[str], unsure: Collection[str], problems: Problems) -> Gates:
    """The valid gates. ``nodes`` are the names of all nodes; of the targets ``unsure`` the nodes are not known."""
    if not isinstance(value, dict):
        problems.add(("gates",), "E-SPEC-TYPE", f"gates are a mapping of names to limits, not {describe(value)}")
        return {}
    gates: Gates = {}
    for name, limits in value.items():
        path = ("gates", name)
        _check_name(name, nodes, unsure, problems)
        if not isinstance(limits, dict):
            problems.add(path, "E-SPEC-GATE", f"a gate is {{max: NUMBER}} or {{min: NUMBER}}, not {describe(limits)}")
            continue
        gates[name] = _limits(limits, path, problems)
    return gates


def _check_name(name: str, nodes: Collection[str], unsure: Collection[str], problems: Problems) -> None:
    path: Path = ("gates", name)
    node, dot, metric = name.rpartition(".")
    if not dot or not is_metric(metric):
        what = f"a gate is named TARGET.METRIC, and {shorten(name)!r} is not"
        problems.add(path, "E-SPEC-GATE", what, 'for example "report.gguf@Q8_0.kl_divergence"', key=True)
        return
    target = re.split(r"[@.]", node, maxsplit=1)[0]
    if node in nodes or target in unsure:
        return
    below = sorted(item for item in nodes if item.startswith(f"{node}@"))
    near = nearest(node, nodes)
    hint = f"one of {', '.join(below[:8])}" if below else f"did you mean {near!r}?" if near else None
    problems.add(path, "E-SPEC-GATE", f"there is nothing measured under the name {shorten(node)!r}", hint, key=True)


def _limits(limits: dict[str, object], path: Path, problems: Problems) -> dict[str, object]:
    unknown_fields(limits, path, (*_SIDES, "bound"), problems)
    for side in _SIDES:
        number = limits.get(side)
        if side in limits and (isinstance(number, bool) or not isinstance(number, int | float)):
            problems.add((*path, side), "E-SPEC-GATE", f"must be a number, not {describe(number)}")
    if not set(_SIDES) & set(limits):
        problems.add(path, "E-SPEC-GATE", "a gate has a limit: {max: NUMBER} or {min: NUMBER}", key=True)
    if limits.get("bound", "value") not in _BOUNDS:
        what = f"must be one of {', '.join(_BOUNDS)}, not {describe(limits['bound'])}"
        problems.add((*path, "bound"), "E-SPEC-GATE", what)
    low, high = limits.get("min"), limits.get("max")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        problems.add(path, "E-SPEC-GATE", "nothing can pass: min is above max", key=True)
    return dict(limits)
