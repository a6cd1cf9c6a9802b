"""The speed of an export beside that of its baselines, as ``doit show`` prints it: one row a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingot.core.quantities import size_text

_TITLES = ("", "first token", "token p50", "p95", "p99", "prompt", "generation", "memory")
_TIMES = ("first_token_s", "token_p50_s", "token_p95_s", "token_p99_s")
_RATES = ("prompt_tokens_per_second", "generation_tokens_per_second")


def side_by_side(receipt: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]:
    """Titles, rows and columns to align right; no row where no speed was measured beside another."""
    notes = timed(receipt)
    rows = list(_rows(receipt["metrics"], notes)) if notes else []
    return _TITLES, rows, tuple(range(1, len(_TITLES)))


def of_baseline(name: str, receipt: Mapping[str, Any]) -> bool:
    """Whether a metric is a baseline's: all that it says stands in the table."""
    return any(name.startswith(f"{other}_") for other in timed(receipt).get("baselines", {}))


def timed(receipt: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a benchmark noted of how it timed; empty of any other build, whose note only names a runtime."""
    notes = (receipt.get("notes") or {}).get("runtime")
    return notes if isinstance(notes, Mapping) else {}


def ran_on(notes: Mapping[str, Any]) -> Iterator[str]:
    """What figures of other machines must be compared with, a few words each."""
    hardware = notes.get("hardware") or {}
    yield str(hardware.get("processor", "a processor that the system does not name"))
    if "usable_cores" in hardware:
        yield f"{hardware['usable_cores']} of {hardware.get('cores', '?')} processors"
    yield f"{notes.get('threads', '?')} threads"
    if "load_before" in hardware:
        yield f"load {hardware['load_before']:g} before it began"


def _rows(metrics: Mapping[str, Any], notes: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    named = {"": str(notes.get("runtime", "")), **{f"{name}_": name for name in notes.get("baselines", {})}}
    for prefix, name in named.items():
        if f"{prefix}first_token_s" in metrics:
            times = [f"{_figure(1000 * metrics[prefix + key]['value'])} ms" for key in _TIMES]
            rates = [f"{_figure(metrics[prefix + key]['value'])} tokens/s" for key in _RATES]
            memory = metrics.get(f"{prefix}run_memory")
            yield name, *times, *rates, "" if memory is None else size_text(int(memory["value"]))


def _figure(value: float) -> str:
    """Three digits: times of two runs agree in no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".removesuffix(".")
