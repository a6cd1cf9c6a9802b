"""What only a Mac can say of a package: how long Core ML takes, and where it runs each operation. Nothing elsewhere.

Read from Core ML itself through coremltools: ``MLModel.predict`` and ``MLComputePlan``. This code was written against
coremltools 9.0 and its documentation; no part of ingot's tests runs Core ML.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.core.stage import Metric
from ingot.kit.coreml.settings import INPUT, POSITION, Lengths, Settings
from ingot.kit.mil.native import available

#: Core ML's classes of devices by what a metric calls them.
_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "neural_engine"}
_WARM, _CALLS = 2, 20


def measure(package: Path, settings: Settings, compute_units: str) -> dict[str, Metric]:
    """Latency of a call and operations by device, of each function; empty where there is no Core ML."""
    if not available():
        return {}
    import coremltools as ct

    units = ct.ComputeUnit[compute_units]
    found: dict[str, Metric] = {}
    for name, lengths in settings.functions.items():
        chosen = name if settings.context else None
        model = ct.models.MLModel(str(package), compute_units=units, function_name=chosen)
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(
            path=model.get_compiled_model_path(), compute_units=units
        )
        program = plan.model_structure.program
        operations = program.functions[name].block.operations
        found |= residency(name, (_device(plan, each) for each in operations))
        found |= _latency(name, model, lengths, settings)
    return found


def _device(plan: Any, operation: Any) -> str | None:
    """The class of the device that Core ML prefers; None for constants, which run nowhere."""
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    return None if usage is None else type(usage.preferred_compute_device).__name__


def residency(function: str, devices: Iterable[str | None]) -> dict[str, Metric]:
    """How many operations of a function Core ML plans for each device. ValueError for a device that is not known."""
    counts = Counter(device for device in devices if device is not None)
    if strange := set(counts) - set(_DEVICES):
        raise ValueError(f"Core ML names a device that is not known: {min(strange)}")
    method = "operations that Core ML's compute plan prefers this device for, on this Mac"
    return {f"{function}_on_{name}": Metric(counts[kind], "1", method) for kind, name in _DEVICES.items()}


def _latency(function: str, model: Any, lengths: Lengths, settings: Settings) -> dict[str, Metric]:
    inputs: Mapping[str, Any] = {INPUT: np.zeros((1, lengths.most), np.int32)}
    if settings.context:
        inputs = {**inputs, POSITION: np.zeros(1, np.int32)}
    state = model.make_state() if settings.context else None
    times = []
    for _ in range(_WARM + _CALLS):
        start = time.perf_counter()
        model.predict(inputs, state=state)
        times.append(time.perf_counter() - start)
    method = f"Core ML on this Mac, {lengths.most} tokens a call, after {_WARM} that do not count"
    counted = np.array(times[_WARM:])
    return {
        f"{function}_latency_p{share}_s": Metric(float(np.percentile(counted, share)), "s", method, n=_CALLS)
        for share in (50, 95)
    }
