"""Every model that the registry knows, with what was measured of it, by whom, and under which conditions.

A variant is an artifact: the same bytes under several names are one. What measured it joins by its digest: evaluations,
tasks, and its own build (an export's benchmark, a cost). Two numbers compare when they were taken alike; ``Way`` says
how one was taken, as far as that changes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ingot.core.directions import AGAINST_ITSELF
from ingot.core.lineage import NO_CONDITION, asked, candidate, inputs
from ingot.core.lookup import Receipt
from ingot.core.scan import Scan

if TYPE_CHECKING:
    from ingot.core.project import Project

#: The forms of artifacts that are models, whole and able to run.
MODELS = frozenset(("hf", "gguf", "coreml", "onnx"))
_CANDIDATE, _REFERENCE = "candidate", "reference"
#: Of a measurement these say what the measuring took, not what the measured one is worth.
_OF_THE_BUILD = frozenset(("cost", "gpu_hours"))
#: Settings that matter to timings alone, and to timings too; how often is resampled changes no value.
_TIMING = frozenset(("prompt_tokens", "generation_tokens", "repeats"))
_BOTH = frozenset(("dtype", "device", "batch"))
#: What depends on the machine.
_TIMED = re.compile(r"(.*_per_second|.*latency.*|.*_m?s|.*_s_p\d+|.*_ms_p\d+|energy.*|peak_.*|.*first_token.*)")


@dataclass(frozen=True)
class Way:
    """How a number was taken: equal ways compare. What does not matter for a metric is None."""

    kind: str | None = None
    revision: int | None = None
    settings: str | None = None
    data: str | None = None
    reference: str | None = None
    hardware: str | None = None
    method: str | None = None

    def differs(self, other: Way) -> list[tuple[str, str, str]]:
        """(what, here, there) of everything in which two ways differ."""
        fields = ("kind", "revision", "data", "reference", "settings", "hardware", "method")
        found: list[tuple[str, str, str]] = []
        for name in fields:
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                found += _settings(here, there) if name == "settings" else [(name, str(here), str(there))]
        return found


def _settings(here: str | None, there: str | None) -> Iterator[tuple[str, str, str]]:
    one, other = json.loads(here or "{}"), json.loads(there or "{}")
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield name, json.dumps(one.get(name)), json.dumps(other.get(name))


@dataclass(frozen=True)
class Number:
    """One measured number: the metric, who measured it (a target, an entry), and how."""

    metric: Mapping[str, Any]
    target: str
    digest: str
    origin: str
    index: int
    way: Way
    #: What sorts numbers by age.
    order: tuple[str, str, int]

    @property
    def value(self) -> float:
        """The number."""
        value: float = self.metric["value"]
        return value


class Variant:
    """One artifact: what it is called, and what measured it; its numbers are made when they are asked for."""

    def __init__(self, receipt: Receipt, lookup: Scan) -> None:
        self.receipt, self.digest, self.kind = receipt, str(receipt["digest"]), str(receipt["kind"])
        self.targets: list[str] = []
        #: (task, receipt), oldest first: where a number is missing, one of these may say why.
        self.measured_by: list[tuple[str, Receipt]] = []
        self._lookup = lookup
        self._known: dict[str, list[Number]] = {}

    @cached_property
    def _sources(self) -> dict[str, list[tuple[Receipt, str, bool]]]:
        """By metric, the receipts that have it, by which name, and whether they are of measurements."""
        found: dict[str, list[tuple[Receipt, str, bool]]] = {}
        for task, receipt in self.measured_by:
            for name in receipt["metrics"]:
                if name not in _OF_THE_BUILD:
                    found.setdefault(f"{task}.{name}" if task else name, []).append((receipt, name, True))
        for name in self.receipt["metrics"]:
            found.setdefault(name, []).append((self.receipt, name, False))
        return found

    @property
    def metrics(self) -> Iterable[str]:
        """The names of all that is known of it."""
        return self._sources.keys()

    def numbers(self, metric: str) -> list[Number]:
        """Every number of a metric."""
        if metric not in self._known:
            sources = self._sources.get(metric, ())
            self._known[metric] = [_number(receipt, name, self._lookup, by) for receipt, name, by in sources]
        return self._known[metric]


def read(project: Project, lookup: Scan, *, every: bool, spec: str | None = None) -> list[Variant]:
    """The newest result of each target that is a model, or with ``every`` each result; of one spec where it says so."""
    found: dict[str, Variant] = {}
    forms = _Forms(project)
    for target, receipt in _results(project, lookup, forms, every=every, spec=spec):
        digest = str(receipt["digest"])
        variant = found.get(digest) or found.setdefault(digest, Variant(receipt, lookup))
        if target not in variant.targets:
            variant.targets.append(target)
    for receipt in lookup.measuring(found):
        newest = project.index.latest.get(str(receipt["target"]))
        if not every and newest is not None and newest["digest"] != receipt["digest"]:
            # It was measured again since, in another way perhaps: what was replaced has no say.
            continue
        found[candidate(receipt)].measured_by.append((_task(receipt), receipt))
    return [variant for variant in found.values() if variant.measured_by or forms.is_model(variant.kind)]


class _Forms:
    """Which kinds give models."""

    def __init__(self, project: Project) -> None:
        self._known = {node.kind: node.produces in MODELS for node in project.nodes.values()}

    def is_model(self, kind: str) -> bool:
        if kind not in self._known:
            from ingot.core.stage import kinds, load_kind

            self._known[kind] = kind in kinds() and load_kind(kind).produces in MODELS
        return self._known[kind]


def _results(
    project: Project, lookup: Scan, forms: _Forms, *, every: bool, spec: str | None
) -> Iterator[tuple[str, Receipt]]:
    """(target, receipt) of what is a model or was measured as one; lines of anything else are not decoded."""

    def may_be(kind: str | None, digest: str) -> bool:
        return kind is None or digest in lookup.measured or forms.is_model(kind)

    newest = {name: at for name, at in project.index.latest.items() if spec in (None, name.partition(":")[0])}
    if every:
        entries = ((name, entry) for name, entry in lookup.given(may_be) if name in newest)
    else:
        places = ((name, str(at["origin"]), int(at["index"]), str(at["digest"])) for name, at in newest.items())
        entries = (
            (name, entry)
            for name, origin, index, digest in places
            if may_be(lookup.kind_at(origin, index), digest) and (entry := lookup.entry(origin, index)) is not None
        )
    for name, entry in entries:
        receipt = lookup.brief(entry) if entry.type == "build" else lookup.result_of(entry)
        if receipt is not None and may_be(str(receipt["kind"]), str(receipt["digest"])):
            yield name, receipt


def _task(receipt: Receipt) -> str:
    """What a task is called: ``gsm8k`` of ``s:report.gguf@Q4_0.gsm8k``; one that is a target of its own by its name."""
    if receipt["kind"] == "evaluate":
        return ""
    name = str(receipt["target"]).partition(":")[2]
    measured = str(inputs(receipt, _CANDIDATE)[0]["target"]).partition(":")[2]
    _, found, task = name.partition(f".{measured}.")
    return task if found else name.partition("@")[0]


def _way(receipt: Receipt, name: str, lookup: Scan) -> Way:
    """How a measurement took one of its numbers, as far as that matters to it."""
    metric = receipt["metrics"][name]
    if not _is_sampled(name, metric):
        return Way(method=str(metric["method"]))
    params = _params(receipt)
    if _TIMED.fullmatch(name):
        timed = {key: value for key, value in params.items() if key in _TIMING or key in _BOTH}
        return Way(str(receipt["kind"]), int(receipt["revision"]), _text(timed), hardware=_hardware(receipt))
    reference = (
        next((str(it["digest"]) for it in inputs(receipt, _REFERENCE)), None) if name in AGAINST_ITSELF else None
    )
    others = {role: inputs(receipt, role) for role in receipt["inputs"] if role not in NO_CONDITION}
    data = _text({role: [item["digest"] for item in items] for role, items in sorted(others.items()) if items})
    settings = {key: value for key, value in params.items() if key not in _TIMING and key != "resamples"}
    settings |= {f"samples.{key}": value for key, value in asked(receipt, lookup).items()}
    return Way(str(receipt["kind"]), int(receipt["revision"]), _text(settings), data, reference)


def _is_sampled(name: str, metric: Mapping[str, Any]) -> bool:
    return "n" in metric or "interval" in metric or _TIMED.fullmatch(name) is not None


def _params(receipt: Receipt) -> Mapping[str, Any]:
    params: Mapping[str, Any] = receipt["key_parts"].get("params", {})
    return params


def _hardware(receipt: Receipt) -> str:
    environment = receipt["environment"]
    words = [str(environment[name]) for name in ("system", "machine") if name in environment]
    words += [f"{environment[name]} {name}" for name in ("cpus", "threads") if name in environment]
    device = receipt.get("notes", {}).get("device")
    return ", ".join([*words, *([str(device)] if device else [])])


def _number(receipt: Receipt, name: str, lookup: Scan, is_measurement: bool) -> Number:  # noqa: FBT001
    metric, origin, index = receipt["metrics"][name], str(receipt["origin"]), int(receipt["index"])
    if is_measurement:
        way = _way(receipt, name, lookup)
    elif _is_sampled(name, metric):
        way = Way(str(receipt["kind"]), hardware=_hardware(receipt))
    else:
        way = Way(method=str(metric["method"]))
    return Number(
        metric, str(receipt["target"]), str(receipt["digest"]), origin, index, way, lookup.order_at(origin, index)
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def names_of(variants: Iterable[Variant]) -> list[str]:
    """All metrics that something was measured in, those of most variants first."""
    counts: dict[str, int] = {}
    for variant in variants:
        for name in variant.metrics:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))
