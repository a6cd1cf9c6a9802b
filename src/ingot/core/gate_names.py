"""``gates:`` as written: does each name something that is measured, and what are its limits. ``core/gates.py`` judges.

gates:
  report.gguf@Q8_0.kl_divergence: {max: 0.5, bound: upper}
  report.gguf@Q8_0.perplexity: {max: 1.05, relative_to: reference}
  report.gguf@Q8_0.nll: {max: 0.02, minus: last_good, bound: confident, undecided: fail}
  presets: {gguf@Q8_0: interactive}
  regression: {severity: warn}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ingot.core.complaints import describe, is_number, unknown_fields
from ingot.core.gate_nodes import Nodes, is_unsure, reference_of
from ingot.core.gate_rules import read_presets, read_regression
from ingot.core.names import is_metric, nearest, suggestion
from ingot.core.problems import Problems
from ingot.core.scalars import shorten
from ingot.core.verdicts import BOUNDS, FORMS, Gate, Severity, Undecided
from ingot.core.yaml_reader import Path

SIDES = ("max", "min")
#: Results by what the log says of them, and the reference of a report.
OTHERS = ("reference", "last_good", "active")
FIELDS = (*SIDES, "bound", *FORMS, "severity", "undecided")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "bound": BOUNDS, "severity": get_args(Severity), "undecided": get_args(Undecided),
}  # fmt: skip
#: What stands beside gates under ``gates:``; a gate has a dot in its name.
RULES = ("presets", "regression")


@dataclass(frozen=True)
class Gates:
    """``gates:`` of a spec: as it is written, as it is judged, and how candidates are compared with what is active."""

    written: dict[str, Any] = field(default_factory=dict)
    judged: tuple[Gate, ...] = ()
    regression: dict[str, Any] | None = field(default_factory=dict)


def read_gates(value: object, nodes: Nodes, unsure: Collection[str], problems: Problems) -> Gates:
    """The valid gates. ``nodes`` are all that are known; of the targets ``unsure`` they are not."""
    if not isinstance(value, dict):
        problems.add(("gates",), "E-SPEC-TYPE", f"gates are a mapping of names to limits, not {describe(value)}")
        return Gates()
    written: dict[str, Any] = {}
    judged: list[Gate] = []
    for name, limits in value.items():
        path = ("gates", name)
        if name in RULES:
            written[name] = limits
            continue
        named = _check_name(name, nodes, unsure, problems)
        if not isinstance(limits, dict):
            problems.add(path, "E-SPEC-GATE", f"a gate is {{max: NUMBER}} or {{min: NUMBER}}, not {describe(limits)}")
            continue
        written[name] = check_limits(limits, path, problems)
        gate = _gate(name, limits, nodes, problems) if named else None
        judged += [] if gate is None else [gate]
    if "presets" in value:
        judged += read_presets(value["presets"], nodes, unsure, problems)
    regression = read_regression(value.get("regression", True), nodes, unsure, problems)
    return Gates(written, tuple(judged), regression)


def _check_name(name: str, nodes: Nodes, unsure: Collection[str], problems: Problems) -> bool:
    """Whether a gate names something that is measured."""
    path: Path = ("gates", name)
    node, dot, metric = name.rpartition(".")
    if not dot or not is_metric(metric):
        what = f"a gate is named TARGET.METRIC, and {shorten(name)!r} is not"
        near = nearest(name, RULES)
        hint = f"did you mean {near!r}?" if near else 'for example "report.gguf@Q8_0.kl_divergence"'
        problems.add(path, "E-SPEC-GATE", what, hint, key=True)
        return False
    if node in nodes:
        if nodes[node].measures(metric):
            return True
        what = f"nothing measures {shorten(metric)!r} of {shorten(node)!r} (kind {nodes[node].kind!r})"
        problems.add(path, "E-SPEC-GATE", what, nodes[node].hint(metric, nodes), key=True)
    elif not is_unsure(node, unsure):
        what = f"there is nothing measured under the name {shorten(node)!r}"
        problems.add(path, "E-SPEC-GATE", what, nearest_node(node, nodes), key=True)
    return False


def nearest_node(name: str, nodes: Nodes) -> str | None:
    """The hint for the name of a node that is none."""
    below = sorted(item for item in nodes if item.startswith(f"{name}@"))
    near = nearest(name, nodes)
    return f"one of {', '.join(below[:8])}" if below else f"did you mean {near!r}?" if near else None


def check_limits(limits: dict[str, Any], path: Path, problems: Problems) -> dict[str, Any]:
    """The fields of a gate, each complaint at its place."""
    unknown_fields(limits, path, FIELDS, problems)
    for side in SIDES:
        number = limits.get(side)
        if side in limits and not is_number(number):
            problems.add((*path, side), "E-SPEC-GATE", f"must be a number, not {describe(number)}")
    if not set(SIDES) & set(limits):
        problems.add(path, "E-SPEC-GATE", "a gate has a limit: {max: NUMBER} or {min: NUMBER}", key=True)
    check_words(limits, path, problems)
    low, high = limits.get("min"), limits.get("max")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        problems.add(path, "E-SPEC-GATE", "nothing can pass: min is above max", key=True)
    if limits.get("bound", "value") not in ("confident", "proven") and "undecided" in limits:
        what = "only a gate with bound: confident or bound: proven can be undecided"
        problems.add((*path, "undecided"), "E-SPEC-GATE", what, key=True)
    if limits.get("severity") == "warn" and limits.get("undecided") == "fail":
        problems.add((*path, "undecided"), "E-SPEC-GATE", "a gate with severity: warn never fails", key=True)
    return dict(limits)


def check_words(limits: Mapping[str, Any], path: Path, problems: Problems) -> None:
    """Fields that take one of a few words."""
    for name, words in _WORDS.items():
        if name in limits and limits[name] not in words:
            given = limits[name]
            hint = suggestion(given, words) if isinstance(given, str) and len(given) > 1 else None
            what = f"must be one of {', '.join(words)}, not {describe(given)}"
            problems.add((*path, name), "E-SPEC-GATE", what, hint if hint and "mean" in hint else None)


def _gate(name: str, limits: Mapping[str, Any], nodes: Nodes, problems: Problems) -> Gate | None:
    """The gate as it is judged; None where a field of it is wrong, which has been said."""
    path: Path = ("gates", name)
    given = [word for word in FORMS if word in limits]
    if len(given) == 2:
        what = "a metric is compared by its ratio (relative_to) or by its difference (minus), not by both"
        problems.add((*path, given[1]), "E-SPEC-GATE", what, key=True)
        return None
    other = _other(name, limits[given[0]], (*path, given[0]), nodes, problems) if given else ""
    numbers = [limits[side] for side in SIDES if side in limits and is_number(limits[side])]
    if given == ["relative_to"] and any(number <= 0 for number in numbers):
        hint = "1.05 means at most 5 % above the other; for differences write `minus`"
        problems.add(path, "E-SPEC-GATE", "the limit of a ratio is above 0", hint, key=True)
    if other is None or not numbers or any(limits.get(word, words[0]) not in words for word, words in _WORDS.items()):
        return None
    fields: dict[str, Any] = {side: float(limits[side]) for side in SIDES if is_number(limits.get(side))}
    fields |= {word: limits[word] for word in _WORDS if word in limits}
    return Gate(name, **fields, form=FORMS[given[0]] if given else None, other=other)


def _other(name: str, given: object, path: Path, nodes: Nodes, problems: Problems) -> str | None:
    """What a gate is compared with: ``reference`` becomes the node that measures it. None where that is nothing."""
    node, _, metric = name.rpartition(".")
    if not isinstance(given, str):
        problems.add(path, "E-SPEC-GATE", f"must be the name of a node or one of {', '.join(OTHERS)}")
        return None
    if given in ("last_good", "active"):
        return given
    other = reference_of(nodes[node], nodes) if given == "reference" else given
    if other is None:
        what = f"{node} is no measurement of a report that has a reference"
        problems.add(path, "E-SPEC-GATE", what, "name what measures the other one, such as report.base")
    elif other not in nodes:
        hint = nearest_node(other, nodes) or suggestion(other, OTHERS)
        problems.add(path, "E-SPEC-GATE", f"there is nothing measured under the name {shorten(other)!r}", hint)
    elif other == node:
        problems.add(path, "E-SPEC-GATE", f"{node} would be compared with itself")
    elif not nodes[other].measures(metric):
        what = f"nothing measures {metric!r} of {other!r} (kind {nodes[other].kind!r})"
        problems.add(path, "E-SPEC-GATE", what, nodes[other].hint(metric, nodes))
    else:
        return other
    return None
