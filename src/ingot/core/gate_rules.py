"""Gates that nobody writes one by one: presets for a role, and the comparison of candidates with what is active."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from ingot.core.complaints import describe, is_number, unknown_fields
from ingot.core.directions import better
from ingot.core.gate_nodes import Nodes, instances_of, is_unsure, measurers, reference_of
from ingot.core.gate_presets import KEPT, PRESETS, Limit
from ingot.core.names import nearest, suggestion
from ingot.core.problems import Problems
from ingot.core.quality import is_score, telling
from ingot.core.scalars import shorten
from ingot.core.verdicts import Gate, Severity, Undecided
from ingot.core.yaml_reader import Path

_PRESETS: Path = ("gates", "presets")
_REGRESSION: Path = ("gates", "regression")
_CODE = "E-SPEC-GATE"


def read_presets(value: object, nodes: Nodes, unsure: Collection[str], problems: Problems) -> list[Gate]:
    """The gates of ``presets: {TARGET: NAME | [NAME, …] | {NAME: {METRIC: NUMBER | null}}}``."""
    if not isinstance(value, dict):
        problems.add(_PRESETS, _CODE, f"presets are a mapping of targets to names of presets, not {describe(value)}")
        return []
    found: list[Gate] = []
    for target, wanted in value.items():
        path = (*_PRESETS, target)
        meant = [name for name in instances_of(target, nodes) if not nodes[name].implying]
        if not meant and not is_unsure(target, unsure):
            near = nearest(target, [name for name, node in nodes.items() if not node.implying])
            hint = f"did you mean {near!r}?" if near else None
            problems.add(path, _CODE, f"there is no target {shorten(target)!r}", hint, key=True)
        for preset, changes, place in _wanted(wanted, path, problems):
            unknown_fields(changes, place, (*PRESETS[preset].limits, KEPT, "severity"), problems)
            if changes.get("severity", "fail") not in get_args(Severity):
                what = f"must be one of {', '.join(get_args(Severity))}, not {describe(changes['severity'])}"
                problems.add((*place, "severity"), _CODE, what)
            for name in meant:
                spread = _spread(name, preset, changes, (place, nodes, problems))
                found += [replace(gate, severity=changes.get("severity", "fail")) for gate in spread]
    return found


def _wanted(value: object, path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
    """(name of a preset, what is changed of it, where it is written)."""
    listed: list[tuple[Any, Any, Path]]
    if isinstance(value, dict):
        listed = [(name, changes, (*path, name)) for name, changes in value.items()]
    elif isinstance(value, list):
        listed = [(name, {}, (*path, index)) for index, name in enumerate(value)]
    else:
        listed = [(value, {}, path)]
    for name, changes, place in listed:
        if name not in PRESETS:
            shown = repr(shorten(name)) if isinstance(name, str) else describe(name)
            hint = suggestion(name, PRESETS) if isinstance(name, str) else f"one of {', '.join(PRESETS)}"
            problems.add(place, _CODE, f"there is no preset {shown}", hint, key=isinstance(value, dict))
        elif not isinstance(changes, dict):
            problems.add(place, _CODE, f"a preset is changed by {{METRIC: NUMBER or null}}, not {describe(changes)}")
        else:
            yield name, changes, place


def _spread(name: str, preset: str, changes: Mapping[str, Any], place: tuple[Path, Nodes, Problems]) -> Iterator[Gate]:
    """The gates of one preset for one target, with the numbers that are changed."""
    rule, (path, nodes, problems) = PRESETS[preset], place
    for metric, limit in rule.limits.items():
        number = changes.get(metric, limit.number)
        if number is None:
            continue
        if not is_number(number):
            problems.add((*path, metric), _CODE, f"must be a number or null, not {describe(number)}")
            continue
        found = measurers(name, metric, nodes)
        if not found:
            problems.add(path, _CODE, *_unmeasured(name, preset, metric))
        for node in found:
            yield _limited(f"{node.name}.{metric}", Limit(limit.side, number), preset)
    yield from _kept(name, preset, changes.get(KEPT, rule.kept), place)


def _limited(gate: str, limit: Limit, preset: str) -> Gate:
    made = Gate(gate, rule=f"preset {preset}")
    number = float(limit.number)
    return replace(made, max=number) if limit.side == "max" else replace(made, min=number)


def _unmeasured(name: str, preset: str, metric: str) -> tuple[str, str]:
    what = f"the preset {preset!r} limits {metric!r}, which nothing measures of {name!r}"
    how = "make it a candidate of a report with a reference" if metric == "kl_divergence" else "give it a `benchmark`"
    return what, f"{how}, or leave the limit out: {{{name}: {{{preset}: {{{metric}: null}}}}}}"


def _kept(name: str, preset: str, share: object, place: tuple[Path, Nodes, Problems]) -> Iterator[Gate]:
    """One gate for each measurement with scores: which scores those are is known when they are measured."""
    path, nodes, problems = place
    if share is None:
        return
    if not is_number(share) or share <= 0:
        problems.add((*path, KEPT), _CODE, f"must be a share above 0 or null, not {describe(share)}")
        return
    for node in nodes.values():
        reference = reference_of(node, nodes) if node.element == name else None
        if reference is None or reference == node.name:
            continue
        if any(is_score(re.sub("[A-Z]+", "1", metric)) for metric in node.measured):
            gate = Gate(f"{node.name}.{KEPT}", min=float(share), form="ratio", other=reference)
            yield replace(gate, rule=f"preset {preset}")


def read_regression(value: object, nodes: Nodes, unsure: Collection[str], problems: Problems) -> dict[str, Any] | None:
    """``regression:`` with what is not given left out; None where it is ``false``."""
    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, dict):
        problems.add(_REGRESSION, _CODE, f"must be true, false or a mapping, not {describe(value)}")
        return {}
    unknown_fields(value, _REGRESSION, ("severity", "undecided", "metrics", "margin"), problems)
    words: dict[Literal["severity", "undecided"], tuple[str, ...]] = {
        "severity": get_args(Severity), "undecided": get_args(Undecided),
    }  # fmt: skip
    for field, allowed in words.items():
        if field in value and value[field] not in allowed:
            what = f"must be one of {', '.join(allowed)}, not {describe(value[field])}"
            problems.add((*_REGRESSION, field), _CODE, what)
    metrics, margin = value.get("metrics", []), value.get("margin", {})
    if not isinstance(metrics, list):
        problems.add((*_REGRESSION, "metrics"), _CODE, f"must be a list of metrics, not {describe(metrics)}")
    elif not metrics and "metrics" in value:
        problems.add((*_REGRESSION, "metrics"), _CODE, "names no metric", "regression: false switches it off")
    else:
        for index, metric in enumerate(metrics):
            _check_metric(metric, (*_REGRESSION, "metrics", index), (nodes, unsure), problems)
    if not isinstance(margin, dict):
        problems.add((*_REGRESSION, "margin"), _CODE, f"must be a mapping of metrics, not {describe(margin)}")
    else:
        for metric, number in margin.items():
            _check_metric(metric, (*_REGRESSION, "margin", metric), (nodes, unsure), problems)
            if not is_number(number) or number < 0:
                what = f"must be a number of at least 0, not {describe(number)}"
                problems.add((*_REGRESSION, "margin", metric), _CODE, what)
    return dict(value)


def _check_metric(metric: object, path: Path, known: tuple[Nodes, Collection[str]], problems: Problems) -> None:
    nodes, unsure = known
    candidates = [node for node in nodes.values() if node.element]
    measured = {name for node in candidates for name in node.measured}
    if not isinstance(metric, str):
        problems.add(path, _CODE, f"must be the name of a metric, not {describe(metric)}")
    elif not unsure and not any(node.measures(metric) for node in candidates):
        problems.add(
            path, _CODE, f"nothing measures {shorten(metric)!r} of a candidate", suggestion(metric, telling(measured))
        )
    elif better(metric) is None:
        what = f"it is not known which way {shorten(metric)!r} is better"
        problems.add(path, _CODE, what, "write a gate on it with minus: active")
