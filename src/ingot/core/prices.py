"""What computing costs: ``prices:`` of a spec, and the metrics ``cost`` and ``gpu_hours`` that follow from times.

    prices: {machine_hour: 0.40, gpu_hour: 2.10, currency: USD}

A build costs the hours that it took, times ``machine_hour``; where it computed on a GPU also times ``gpu_hour``, for
one GPU. Of a pass that built several targets each bears an equal part; what only flowed through bears nothing. Prices
are part of no key. The metrics are recorded with the build, with the prices they were made of, and are no part of the
artifact: a result that is at hand cost what it cost then. What attempts cost that were ended is measured nowhere, and
the method says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prices:
    """Prices of an hour of the machine and of a GPU, in one currency; None where there is none."""

    machine_hour: float | None
    gpu_hour: float | None
    currency: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Prices | None:
        """The prices of a graph; None for a spec without."""
        if not given:
            return None
        return cls(given.get("machine_hour"), given.get("gpu_hour"), str(given["currency"]))

    def cost(self, seconds: float, *, gpu: bool) -> float:
        """What so many seconds cost."""
        rate = (self.machine_hour or 0) + ((self.gpu_hour or 0) if gpu else 0)
        return seconds / 3600 * rate

    def words(self, *, gpu: bool) -> str:
        """The prices that count: ``0.4 USD an hour of the machine and 2.1 of a GPU``."""
        named = [] if self.machine_hour is None else [f"{self.machine_hour:g} {self.currency} an hour of the machine"]
        if gpu and self.gpu_hour is not None:
            named.append(f"{self.gpu_hour:g} {self.currency} an hour of a GPU")
        return " and ".join(named) or "no price for what was used"


def metrics(prices: Prices | None, receipt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a build that was just measured cost, as a receipt holds metrics; nothing without prices."""
    if prices is None:
        return {}
    parts = 1 + len(receipt.get("shared_with", ()))
    seconds = float(receipt["timings"]["wall_s"]) / parts
    gpu = computed_on_gpu(receipt)
    how = "wall time" if parts == 1 else f"wall time of the pass over its {parts} targets"
    how += " since its last checkpoint" if receipt["timings"].get("resumed_checkpoints") else ""
    found = {
        "cost": {
            "value": prices.cost(seconds, gpu=gpu),
            "unit": prices.currency,
            "method": f"{how} at {prices.words(gpu=gpu)}",
        }
    }
    if gpu:
        found["gpu_hours"] = {"value": seconds / 3600, "unit": "h", "method": f"{how} of a target that used one GPU"}
    return found


def computed_on_gpu(receipt: Mapping[str, Any]) -> bool:
    """Whether a build says that it used a GPU: memory of one was measured, or its stage notes it."""
    return receipt["timings"].get("peak_device_bytes") is not None or receipt.get("notes", {}).get("device") == "cuda"
