"""What the harness found, as metrics with intervals and as one line an item.

Metrics have the harness's names, made names of metrics: ``pass@1`` is ``pass_at_1``. Where a task gives a metric by
several filters, the words of the filter that the metric's name has not follow (``exact_match_strict``); where several
tasks are asked, the name of the task goes before (``hellaswag_acc``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api import metrics as known

from ingot.core.stage import Metric
from ingot.kit.bootstrap import ratio_interval, share_interval, statistic_interval

_BITS = "bits/byte"
#: Statistics that take long on all items: so many resamples at most.
_FEW = 200
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Found:
    """One number of the harness: of a task or group, a metric, a filter."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None


def found_in(results: Mapping[str, Any]) -> list[Found]:
    """All numbers of a run, in the order in which the harness tells them."""
    found = []
    for task, numbers in results["results"].items():
        for key, value in numbers.items():
            metric, comma, which = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = numbers.get(f"{metric}_stderr,{which}")
            found.append(Found(task, metric, which, float(value), float(error) if _is_number(error) else None))
    return found


def names_of(found: Sequence[Found]) -> list[str]:
    """The metric's name for each number, each name once."""
    several = len({one.task for one in found}) > 1
    filters: dict[tuple[str, str], set[str]] = {}
    for one in found:
        filters.setdefault((one.task, one.metric), set()).add(one.filter)
    short = []
    for one in found:
        metric = _words(one.metric.replace("@", "_at_"))
        more = [word for word in _words(one.filter) if word not in metric]
        by_filter = len(filters[one.task, one.metric]) > 1
        parts = [*(_words(one.task) if several else []), *metric, *(more if by_filter else [])]
        short.append("_".join(parts))
    return [
        name if short.count(name) == 1 else "_".join([name, *_words(one.filter)])
        for name, one in zip(short, found, strict=True)
    ]


def metrics_of(results: Mapping[str, Any], tasks: Mapping[str, Any], resamples: int) -> dict[str, Metric]:
    """The metrics; of each task's numbers the interval is that over its items."""
    found = found_in(results)
    return {
        name: _metric(one, results, tasks, resamples)
        for name, one in zip(names_of(found), found, strict=True)
        if math.isfinite(one.value)
    }


def broken(results: Mapping[str, Any]) -> dict[str, str]:
    """Numbers that are none, with the reason."""
    found = found_in(results)
    return {
        name: "the harness's own figure is no finite number"
        for name, one in zip(names_of(found), found, strict=True)
        if not math.isfinite(one.value)
    }


def own(results: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's figures by its own names, with what it says of the tasks; no path, time or machine."""
    told = ("versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks")
    numbers = {
        task: {key: _plain(value) for key, value in found.items() if "," in key}
        for task, found in results["results"].items()
    }
    return {"lm_eval": lm_eval.__version__, "results": numbers, **{name: _plain(results[name]) for name in told}}


def items_of(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One line an item and filter: which item of which task, its results, what was answered; not what was asked."""
    for task, samples in results.get("samples", {}).items():
        for sample in samples:
            line = {"task": task, "filter": sample["filter"], "item": sample["doc_id"], "doc": sample["doc_hash"]}
            line["results"] = {name: _plain(sample[name]) for name in sorted(sample["metrics"])}
            texts = [text for text in sample["filtered_resps"] if isinstance(text, str | list)]
            yield line | ({"answers": _plain(texts)} if texts else {})


def _metric(one: Found, results: Mapping[str, Any], tasks: Mapping[str, Any], resamples: int) -> Metric:
    shots = results["n-shot"].get(one.task)
    parts = [f"lm-eval {lm_eval.__version__}: {one.metric} of {one.task}"]
    parts += [f"filter {one.filter}"] if one.filter != "none" else []
    parts += [f"{shots}-shot"] if isinstance(shots, int) else []
    count = results["n-samples"].get(one.task, {}).get("effective")
    if one.task in tasks:
        items = [
            sample[one.metric]
            for sample in results["samples"][one.task]
            if sample["filter"] == one.filter and one.metric in sample
        ]
        aggregate = tasks[one.task].aggregation().get(one.metric, known.mean)
        interval, how = _interval(items, aggregate, resamples)
        count = len(items)
    else:
        interval, how = _normal(one)
        count = sum(results["n-samples"][name]["effective"] for name in _leaves(results, one.task))
    parts += [f"standard error {one.stderr:.4g}"] if one.stderr is not None else []
    unit = _BITS if one.metric == "bits_per_byte" else "1"
    return Metric(
        one.value, unit, "; ".join([*parts, *([f"95 % interval: {how}"] if interval else [])]), count, interval
    )


def _interval(items: Sequence[Any], aggregate: Callable[..., Any], resamples: int) -> tuple[Interval, str]:
    """The 95 % interval over items, drawn again with the statistic that the harness computes of them."""
    how = "percentile bootstrap over items"
    if aggregate is known.mean and set(items) <= {0, 1}:
        # a bootstrap would call a share of nothing, or of all, certain
        return share_interval(int(sum(items)), len(items)), "Wilson's"
    if aggregate is known.mean:
        return ratio_interval([float(item) for item in items], [1.0] * len(items), resamples), how
    if aggregate in (known.weighted_perplexity, known.bits_per_byte):
        sums, weights = zip(*items, strict=True)
        found = ratio_interval(sums, weights, resamples)
        if found is None:
            return None, how
        if aggregate is known.bits_per_byte:
            return (-found[1] / math.log(2), -found[0] / math.log(2)), how
        return (math.exp(-found[1]), math.exp(-found[0])), how
    few = min(resamples, _FEW)
    return statistic_interval(items, lambda drawn: float(aggregate(drawn)), few), f"{how}, {few} resamples"


def _normal(one: Found) -> tuple[Interval, str]:
    """Of a group: the harness pools the standard errors of its tasks."""
    if one.stderr is None:
        return None, ""
    return (one.value - 1.96 * one.stderr, one.value + 1.96 * one.stderr), "1.96 standard errors, pooled over its tasks"


def _leaves(results: Mapping[str, Any], group: str) -> list[str]:
    below = results["group_subtasks"].get(group, [])
    return list(dict.fromkeys(leaf for name in below for leaf in (_leaves(results, name) or [name])))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Plain data of what a metric gave for an item."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else str(value)
