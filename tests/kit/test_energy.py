"""Joules from a powercap tree and an NVML of our own: counters that begin again, what may not be read, what stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.core.gpu import Nvml
from ingot.kit import energy, energy_per_token
from ingot.kit.backends import Next
from ingot.kit.energy import Counted, Meter, Rapl, Sampled, Unreadable, open_meter

# ruff: noqa: N802 - the names are those of the library that it stands for

RANGE = 1_000_000


class Zones:
    """A powercap tree: zones by folder, with their names and counters."""

    def __init__(self, root: Path, **names: str) -> None:
        self.root, self.names = root, {f"intel-rapl:{key.replace('_', ':')[1:]}": name for key, name in names.items()}
        for folder, name in self.names.items():
            self.put(folder, "name", name)
            self.put(folder, "max_energy_range_uj", str(RANGE))
            self.put(folder, "energy_uj", "0")

    def put(self, folder: str, file: str, text: str) -> None:
        path = self.root / "sys/class/powercap" / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def show(self, **counters: int) -> None:
        for key, value in counters.items():
            self.put(f"intel-rapl:{key.replace('_', ':')[1:]}", "energy_uj", str(value))


class Library:
    """NVML for two GPUs: the second has taken ten times what the first has."""

    def __init__(self, *, counts: bool = True, says_power: bool = True) -> None:
        self.counts, self.says_power = counts, says_power
        self.millijoules, self.milliwatts = 1000, 50_000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, _length: int) -> int:
        text.value = f"GPU-{handle.value}".encode()
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        value._obj.value = self.millijoules * (10 if handle.value == 2 else 1)
        return 0 if self.counts else 3

    def nvmlDeviceGetPowerUsage(self, handle: Any, value: Any) -> int:
        value._obj.value = self.milliwatts * (10 if handle.value == 2 else 1)
        return 0 if self.says_power else 3


def nvml(library: Any) -> Nvml:
    found = Nvml.open(library)
    assert found is not None
    return found


def opened(root: Path) -> Rapl:
    found = Rapl.open(root)
    assert isinstance(found, Rapl)
    return found


# --- processors --------------------------------------------------------------------------------------------------


def test_packages_and_the_memory_beside_them_are_added_and_nothing_twice(tmp_path: Path) -> None:
    zones = Zones(tmp_path, _0="package-0", _0_0="core", _0_1="dram", _1="package-1", _2="psys")
    zones.put("intel-rapl-mmio:0", "name", "package-0")
    zones.put("intel-rapl-mmio:0", "energy_uj", "0")
    rapl = opened(tmp_path)
    zones.show(_0=100_000, _0_0=70_000, _0_1=20_000, _1=50_000, _2=900_000)
    assert rapl.joules() == pytest.approx(0.17)
    assert rapl.words == "RAPL package-0+dram+package-1"


def test_a_counter_that_begins_at_zero_again_goes_on(tmp_path: Path) -> None:
    zones = Zones(tmp_path, _0="package-0")
    zones.show(_0=RANGE - 300_000)
    rapl = opened(tmp_path)
    seen = [rapl.joules()]
    for counter in (RANGE - 100_000, 50_000, 400_000, 10_000):
        zones.show(_0=counter)
        seen.append(rapl.joules())
    assert seen == pytest.approx([0.0, 0.2, 0.35, 0.7, 1.31])


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    found = open_meter(None, root=tmp_path)
    assert isinstance(found, Unreadable)
    assert "shows no counters" in found.reason


def test_counters_for_root_only_are_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Zones(tmp_path, _0="package-0")

    def refused(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_number", refused)
    found = open_meter(None, root=tmp_path)
    assert isinstance(found, Unreadable)
    assert "root only" in found.reason


def test_counters_that_say_no_number_are_not_read(tmp_path: Path) -> None:
    Zones(tmp_path, _0="package-0").put("intel-rapl:0", "energy_uj", "none")
    found = open_meter(None, root=tmp_path)
    assert isinstance(found, Unreadable)
    assert "cannot be read" in found.reason


# --- a GPU -------------------------------------------------------------------------------------------------------


def test_one_gpu_counts_and_not_its_neighbours(tmp_path: Path) -> None:
    library = Library()
    meter = open_meter("GPU-2", root=tmp_path, nvml=lambda: nvml(library))
    assert isinstance(meter, Meter)
    assert meter.words == "NVML's counter of the GPU"
    with meter:
        before = meter.joules()
        library.millijoules += 500
        assert meter.joules() - before == pytest.approx(5.0)


def test_processors_count_with_a_gpu_where_they_can_be_read(tmp_path: Path) -> None:
    zones, library = Zones(tmp_path, _0="package-0"), Library()
    meter = open_meter("GPU-1", root=tmp_path, nvml=lambda: nvml(library))
    assert isinstance(meter, Meter)
    assert meter.words == "NVML's counter of the GPU + RAPL package-0"
    before = meter.joules()
    library.millijoules += 2000
    zones.show(_0=500_000)
    assert meter.joules() - before == pytest.approx(2.5)


def test_power_is_integrated_where_energy_is_not_counted() -> None:
    library, now = Library(counts=False), iter([0.0, 2.0, 5.0])
    sampled = Sampled(nvml(library), "GPU-1", clock=lambda: next(now))
    sampled.look()
    library.milliwatts = 150_000
    sampled.look()
    assert sampled.joules() == pytest.approx(2 * 100 + 3 * 150)


def test_power_is_looked_at_while_something_runs(tmp_path: Path) -> None:
    library = Library(counts=False)
    meter = open_meter("GPU-1", root=tmp_path, nvml=lambda: nvml(library))
    assert isinstance(meter, Meter)
    begun = time.monotonic()
    with meter:
        before = meter.joules()
        time.sleep(0.1)
        taken = meter.joules() - before
    assert 0 < taken <= 50 * (time.monotonic() - begun)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: None, "cannot be loaded"),
        (lambda: nvml(Library(counts=False, says_power=False)), "neither its energy nor its power"),
    ],
)
def test_a_gpu_that_tells_nothing_has_its_reason(tmp_path: Path, made: Any, reason: str) -> None:
    Zones(tmp_path, _0="package-0")
    found = open_meter("GPU-1", root=tmp_path, nvml=made)
    assert isinstance(found, Unreadable), "the processors' joules alone would say nothing of work on a GPU"
    assert reason in found.reason


def test_a_gpu_of_another_name_is_not_there() -> None:
    assert nvml(Library()).energy_j("GPU-9") is None
    assert nvml(Library()).energy_j() == pytest.approx(11.0)
    assert isinstance(energy._of_gpu(nvml(Library()), "GPU-1"), Counted)


# --- a token -----------------------------------------------------------------------------------------------------


class Worker:
    """A backend each of whose tokens takes joules: 0.002 in a prompt, 0.05 when it is generated."""

    container, runtime = "table", "a table"

    def __init__(self, zones: Zones, scale: float = 1.0) -> None:
        self.zones, self.scale, self.taken = zones, scale, 0.0

    def _take(self, joules: float) -> Next:
        self.taken += joules * self.scale
        self.zones.show(_0=round(self.taken * 1e6))
        return np.zeros(3, np.float32)

    def prefill(self, ids: Sequence[int]) -> Next:
        return self._take(0.002 * len(ids))

    def step(self, token: int) -> Next:
        return self._take(0.05)


@pytest.fixture
def zones(tmp_path: Path) -> Zones:
    return Zones(tmp_path, _0="package-0")


def measured(zones: Zones, scale: float = 1.0) -> tuple[dict[str, Any], dict[str, str]]:
    meter = open_meter(None, root=zones.root)
    backend: Any = Worker(zones, scale)
    return energy_per_token.measure(backend, [1] * 100, 8, meter, least_s=0.02)


def test_joules_of_the_prompt_are_no_joules_of_the_answer(zones: Zones) -> None:
    found, unknown = measured(zones)
    assert unknown == {}
    assert found["energy_per_token"].value == pytest.approx(0.05, rel=1e-3)
    assert found["prompt_energy_per_token"].value == pytest.approx(0.002, rel=1e-3)
    assert found["energy_per_token"].unit == "J/token"
    assert "RAPL package-0" in found["energy_per_token"].method
    assert found["energy_per_token"].n >= 1


def test_counters_that_stand_still_measure_nothing(zones: Zones) -> None:
    found, unknown = measured(zones, scale=0.0)
    assert found == {}
    assert set(unknown) == set(energy_per_token.NAMES)
    assert "did not move" in unknown["energy_per_token"]


def test_without_a_counter_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    backend: Any = Worker(Zones(tmp_path, _0="package-0"))
    found, unknown = energy_per_token.measure(backend, [1, 2], 2, Unreadable("not here"))
    assert (found, unknown) == ({}, dict.fromkeys(energy_per_token.NAMES, "not here"))
