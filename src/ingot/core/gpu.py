"""GPUs of this machine, found and measured without torch: by what the driver shows, and by its library NVML.

Laws. A GPU counts as there when the driver's files or NVML show one and ``CUDA_VISIBLE_DEVICES`` does not hide all:
whether a library can use it is found out by the stage. What NVML does not say is not known, never 0: in a container it
may name processes by the numbers of the host, and then nothing of their memory is measured. Energy is what whole
devices took while the stage ran, whoever used them.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIBRARIES = ("libnvidia-ml.so.1", "libnvidia-ml.so")
_SUCCESS, _INSUFFICIENT_SIZE = 0, 7
#: What NVML gives where it does not know a process's memory.
_UNKNOWN = 2**64 - 1


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, and the bytes of its memory in all and free (None: not known)."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None


def visible(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stage would find a GPU; ``root`` is where ``proc`` and ``dev`` are."""
    if hidden(environment):
        return False
    if any((root / "proc/driver/nvidia/gpus").glob("*")):
        return True
    devices = root / "dev"
    return (devices / "dxg").exists() or any(re.fullmatch(r"nvidia\d+", path.name) for path in devices.glob("nvidia*"))


def hidden(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``CUDA_VISIBLE_DEVICES`` hides all GPUs: nothing counts from its first entry on that names none."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    return listed is not None and re.match(r"\s*(\d|GPU-|MIG-)", listed) is None


class Nvml:
    """NVML of this process; ``open`` gives None where there is none."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles = self._devices()

    @classmethod
    def open(cls, library: Any = None) -> Nvml | None:
        """Load and start the library; None where it is not there, or does not start."""
        for name in _LIBRARIES if library is None else ():
            with suppress(OSError):
                library = ctypes.CDLL(name)
                break
        if library is None:
            return None
        with suppress(AttributeError):
            if library.nvmlInit_v2() == _SUCCESS:
                return cls(library)
        return None

    def _devices(self) -> list[ctypes.c_void_p]:
        count, found = ctypes.c_uint(), []
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
            return []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == _SUCCESS:
                found.append(handle)
        return found

    def gpus(self) -> list[Gpu]:
        """All GPUs that NVML shows."""
        return [self._gpu(handle) for handle in self._handles]

    def _gpu(self, handle: ctypes.c_void_p) -> Gpu:
        name, memory = ctypes.create_string_buffer(96), _Memory()
        named = self._library.nvmlDeviceGetName(handle, name, len(name)) == _SUCCESS
        known = self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == _SUCCESS
        text = name.value.decode("utf-8", "replace") if named else "GPU"
        return Gpu(text, int(memory.total), int(memory.free)) if known else Gpu(text)

    def memory_of(self, pids: Collection[int]) -> int | None:
        """Bytes on all GPUs that these processes hold; None where NVML names none of them, or does not say."""
        found = [used for handle in self._handles for pid, used in self._processes(handle) if pid in pids]
        known = [used for used in found if used != _UNKNOWN]
        return sum(known) if known else None

    def _processes(self, handle: ctypes.c_void_p) -> list[tuple[int, int]]:
        size, ask = 64, self._library.nvmlDeviceGetComputeRunningProcesses_v3
        while True:
            count, listed = ctypes.c_uint(size), (_Process * size)()
            status = ask(handle, ctypes.byref(count), listed)
            if status != _INSUFFICIENT_SIZE:
                break
            size = 2 * max(size, count.value)
        return [(it.pid, it.used) for it in listed[: count.value]] if status == _SUCCESS else []

    def energy_j(self, uuid: str | None = None) -> float | None:
        """Joules that all GPUs together, or one, have taken since the driver was loaded; None: one does not count."""
        return self._sum("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, uuid)

    def power_w(self, uuid: str | None = None) -> float | None:
        """Watts that all GPUs together, or one, take at the moment; None where one does not say."""
        return self._sum("nvmlDeviceGetPowerUsage", ctypes.c_uint, uuid)

    def _sum(self, function: str, number: type[Any], uuid: str | None) -> float | None:
        """What a function says in thousandths of each GPU, or of that with a UUID, in all."""
        handles = [handle for handle in self._handles if uuid is None or self._uuid(handle) == uuid]
        values = [number() for _ in handles]
        for handle, value in zip(handles, values, strict=True):
            if getattr(self._library, function)(handle, ctypes.byref(value)) != _SUCCESS:
                return None
        return sum(value.value for value in values) / 1000 if handles else None

    def _uuid(self, handle: ctypes.c_void_p) -> str | None:
        text = ctypes.create_string_buffer(96)
        found = self._library.nvmlDeviceGetUUID(handle, text, len(text)) == _SUCCESS
        return text.value.decode("ascii", "replace") if found else None


@dataclass
class Meter:
    """What a stage takes of the GPUs: the most memory seen of its processes, and the energy of the devices meanwhile.

    ``energy_j`` counts only once memory was seen: a stage that left the GPUs alone took nothing of them.
    """

    nvml: Nvml
    peak_bytes: int | None = None
    _started_j: float | None = None

    def begin(self) -> None:
        """Read the counters; the stage starts now."""
        with suppress(AttributeError):
            self._started_j = self.nvml.energy_j()

    def look(self, pids: Collection[int]) -> None:
        """Look at the memory of these processes."""
        with suppress(AttributeError):
            now = self.nvml.memory_of(pids)
            if now is not None:
                self.peak_bytes = max(self.peak_bytes or 0, now)

    def energy_j(self) -> float | None:
        """Joules since ``begin``."""
        if self.peak_bytes is None or self._started_j is None:
            return None
        now = self.nvml.energy_j()
        return None if now is None else now - self._started_j
