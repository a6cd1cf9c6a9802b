"""Joules a token: of reading a prompt, and of generating. A backend's work is repeated until counters can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingot.core.stage import Metric
from ingot.kit import measure as measuring
from ingot.kit.backends import Backend, gpu_of, not_timed
from ingot.kit.energy import Meter, Unreadable, open_meter
from ingot.kit.runtime.timing import timed

#: What is measured.
NAMES = ("energy_per_token", "prompt_energy_per_token")
#: How long work is repeated, in seconds: counters move in steps of up to a tenth of a second.
_LEAST_S = 1.0


@dataclass(frozen=True)
class _Spent:
    """Joules of one repetition, and how many there were."""

    joules: float
    times: int


def with_speed(
    backend: Backend, prompt: Sequence[int], generated: int, repeats: int
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The speed of a backend on its own runtime and what that takes, with the reasons of what is not measured."""
    unknown = not_timed(backend)
    if unknown:
        return {}, {**unknown, **dict.fromkeys(NAMES, next(iter(unknown.values())))}
    speed = measuring.speed(backend, prompt, generated, repeats)
    energy, unknown = measure(backend, prompt, generated)
    return {**speed, **energy}, unknown


def measure(
    backend: Backend,
    prompt: Sequence[int],
    generated: int,
    meter: Meter | Unreadable | None = None,
    least_s: float | None = None,
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics, and the reasons of those that cannot be measured.

    Tokens are generated after a prompt; the joules of reading it, measured apart, are taken off.
    """
    meter = open_meter(gpu_of(backend)) if meter is None else meter
    if isinstance(meter, Unreadable):
        return {}, dict.fromkeys(NAMES, meter.reason)
    least_s = _LEAST_S if least_s is None else least_s
    with meter:
        prompts = _spent(meter, lambda: backend.prefill(prompt), least_s)
        runs = _spent(meter, lambda: timed(backend, prompt, generated), least_s)
    how = f"batch 1, {backend.runtime}; {meter.words}, whole devices with their idle power"
    found = {
        "energy_per_token": Metric(
            (runs.joules - prompts.joules) / generated,
            "J/token",
            f"{generated} tokens one by one, less the prompt of {len(prompt)} tokens before them, {how}",
            runs.times,
        ),
        "prompt_energy_per_token": Metric(
            prompts.joules / len(prompt),
            "J/token",
            f"a prompt of {len(prompt)} tokens read at once, {how}",
            prompts.times,
        ),
    }
    still = f"{meter.words} did not move measurably in {prompts.times + runs.times} runs"
    return (
        {name: metric for name, metric in found.items() if metric.value > 0},
        {name: still for name, metric in found.items() if not metric.value > 0},
    )


def _spent(meter: Meter, work: Callable[[], object], least_s: float) -> _Spent:
    """Repeat some work for so long; at least once."""
    times, begun, before = 0, time.monotonic(), meter.joules()
    while times == 0 or time.monotonic() - begun < least_s:
        work()
        times += 1
    return _Spent((meter.joules() - before) / times, times)
