"""GPUs as the driver shows them, and as a small NVML of our own counts them; what is not told is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingot.core import gpu
from ingot.core.executor import Executor
from ingot.core.gpu import Gpu, Meter, Nvml
from ingot.core.graph import Node
from ingot.core.plan import missing_device
from ingot.core.store import Store
from ingot.errors import RefusedInput
from projectkit import Sandbox

# ruff: noqa: N802 - the names are those of the library that it stands for


class Library:
    """NVML for one GPU that counts: processes with their memory, and millijoules that grow with every look."""

    def __init__(self, *, energy: bool = True, several: int = 1) -> None:
        self.processes: dict[int, int] = {}
        self.energy, self.millijoules, self.several = energy, 0, several

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = self.several
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, _handle: Any, name: Any, _length: int) -> int:
        name.value = b"Counter 100"
        return 0

    def nvmlDeviceGetMemoryInfo(self, _handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.free, memory._obj.used = 80, 50, 30
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, _handle: Any, count: Any, listed: Any) -> int:
        room, count._obj.value = count._obj.value, len(self.processes)
        if room < len(self.processes):
            return gpu._INSUFFICIENT_SIZE
        for place, (pid, used) in enumerate(self.processes.items()):
            listed[place].pid, listed[place].used = pid, used
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: Any, value: Any) -> int:
        self.millijoules += 5000
        value._obj.value = self.millijoules
        return 0 if self.energy else 3


def opened(library: Any) -> Nvml:
    found = Nvml.open(library)
    assert found is not None
    return found


def test_gpus_are_found_by_what_the_driver_shows(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert not gpu.visible(tmp_path, {}), "the driver's control file alone is no GPU"
    (tmp_path / "dev" / "nvidia0").touch()
    assert gpu.visible(tmp_path, {})
    other = tmp_path / "other"
    (other / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert gpu.visible(other, {})
    assert not gpu.visible(tmp_path / "none", {})


@pytest.mark.parametrize(
    ("listed", "hidden"), [("", True), ("-1", True), ("NoDevFiles", True), ("0", False), ("GPU-8a,1", False)]
)
def test_gpus_that_the_user_hides_are_not_there(tmp_path: Path, listed: str, hidden: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert gpu.visible(tmp_path, {"CUDA_VISIBLE_DEVICES": listed}) is not hidden


def test_a_device_is_described_as_nvml_does() -> None:
    assert opened(Library()).gpus() == [Gpu("Counter 100", 80, 50)]
    assert Nvml.open(object()) is None, "a library that lacks the functions"
    refused, empty, bare = Library(), Library(), Library()
    for library, name in (
        (refused, "nvmlInit_v2"), (empty, "nvmlDeviceGetCount_v2"), (bare, "nvmlDeviceGetMemoryInfo"),
    ):  # fmt: skip
        setattr(library, name, lambda *_arguments: 999)
    assert Nvml.open(refused) is None
    nothing = opened(empty)
    assert (nothing.gpus(), nothing.energy_j(), nothing.memory_of({1})) == ([], None, None)
    assert opened(bare).gpus() == [Gpu("Counter 100")]


def test_a_machine_without_the_library_has_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARIES", ("libno-such-thing.so",))
    assert Nvml.open() is None


def test_the_memory_of_a_stage_is_that_of_its_processes() -> None:
    library = Library()
    nvml = opened(library)
    assert nvml.memory_of({1, 2}) is None, "not 0: nobody said so"
    library.processes = {1: 10, 2: 20, 3: 40}
    assert nvml.memory_of({1, 2}) == 30
    library.processes = {1: gpu._UNKNOWN, 2: 5}
    assert (nvml.memory_of({1}), nvml.memory_of({1, 2})) == (None, 5)
    library.processes = dict.fromkeys(range(200), 1)
    assert nvml.memory_of(range(200)) == 200, "more processes than there was room for at first"
    assert opened(Library(several=2)).memory_of({1}) is None


def test_energy_counts_for_who_used_a_gpu() -> None:
    library = Library()
    meter = Meter(opened(library))
    meter.begin()
    meter.look({7})
    assert (meter.peak_bytes, meter.energy_j()) == (None, None)
    library.processes = {7: 10}
    meter.look({7})
    library.processes = {7: 4}
    meter.look({7})
    assert (meter.peak_bytes, meter.energy_j()) == (10, 5.0)
    quiet = Library(energy=False)
    quiet.processes = {7: 10}
    meter = Meter(opened(quiet))
    meter.begin()
    meter.look({7})
    assert (meter.peak_bytes, meter.energy_j()) == (10, None)


def test_a_job_that_may_use_a_gpu_is_measured(tmp_path: Path) -> None:
    class Everybody(Library):
        """Says of whatever asks that it holds memory: the stage's number is not known before it runs."""

        def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, listed: Any) -> int:
            self.processes = dict.fromkeys(executor._running, 11)
            return super().nvmlDeviceGetComputeRunningProcesses_v3(handle, count, listed)

    executor = Executor(lambda: opened(Everybody()))
    try:
        measured = [ran(executor, Store(tmp_path / str(device)), device) for device in ("auto", None)]
    finally:
        executor.close()
    assert measured == [(11, 5.0), (None, None)]


def ran(executor: Executor, store: Store, device: str | None) -> tuple[int | None, float | None]:
    """What was measured of GPUs while a program ran."""
    with store.staging() as staging:
        job: dict[str, Any] = {
            "kind": "command", "params": {"command": ["sh", "-c", "sleep 0.2; echo x > {out}/x"]}, "seed": None,
            "threads": 1, "inputs": {}, "digests": {}, "scratch": str(staging.scratch), "out": str(staging.out),
            "network": False, "preload": [],
        }  # fmt: skip
        job |= {} if device is None else {"device": device}
        outcome = executor.run(job, store.root / "log.txt", staging.lock_fd, lambda _message: None)
    return outcome.peak_device, outcome.energy_j


# --- before the first stage --------------------------------------------------------------------------------------


def node(name: str, device: str | None) -> Node:
    return Node(
        "adapter",
        1,
        "seeded",
        "adapter",
        {},
        spec="s",
        name=name,
        target=name,
        file="specs/s.yaml",
        line=3,
        device=device,
    )


def test_a_gpu_that_is_asked_for_and_absent_is_refused_by_name() -> None:
    nodes = [node("a", "cuda"), node("b", "auto"), node("c", None)]
    error = missing_device(nodes, lambda: False)
    assert isinstance(error, RefusedInput)
    assert (error.code, error.facts[0]) == ("E-DEVICE", "s:a (adapter, specs/s.yaml:3)")
    assert missing_device(nodes, lambda: True) is None
    assert missing_device(nodes[1:], lambda: False) is None
    many = missing_device([node(str(number), "cuda") for number in range(5)], lambda: False)
    assert many is not None
    assert "and 2 more" in many.facts


def test_nothing_runs_where_a_later_target_wants_a_gpu(sandbox: Sandbox) -> None:
    """The first target could be built; the run is refused all the same, and the plan says so."""
    sandbox.extra_env["CUDA_VISIBLE_DEVICES"] = ""
    sandbox.file("specs/rows.jsonl", '{"text": "a"}\n')
    sandbox.spec(
        "targets:\n"
        "  base: {kind: fetch, path: rows.jsonl}\n"
        "  data: {kind: dataset, sources: [{path: rows.jsonl}]}\n"
        "  adapter: {kind: adapter, from: {model: base, data: data}, steps: 1, device: cuda}\n"
    )
    if "unknown field" in sandbox.doit("plan").stderr:
        pytest.skip("no kind has a device yet")
    done = sandbox.doit()
    assert done.returncode == 2
    assert "E-DEVICE: the spec asks for 'device: cuda'" in done.stdout + done.stderr
    assert not (sandbox.root / "registry").exists()
    assert "doit would refuse: E-DEVICE: the spec asks for 'device: cuda'" in sandbox.ok("plan")
    # With ``-c`` doit goes on to the other targets: what is lacking is told at length once.
    done = sandbox.doit("-c")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("hint: use 'device: auto'") == 1
    assert "E-DEVICE: not started: the spec asks for" in done.stdout + done.stderr
    assert sandbox.doit("doctor").returncode == 1
