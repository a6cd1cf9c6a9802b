"""Joules: what processors (RAPL) and a GPU (NVML) took while something ran.

Laws. A counter counts for the whole package or device, whoever uses it, idle power included. What cannot be read has
its reason, never a zero. Where a model computes on a GPU, the GPU's joules count, and the processors' with them where
these can be read: what was counted stands in ``words``.

RAPL: the kernel's powercap tree, https://docs.kernel.org/power/powercap/powercap.html. Zones ``package-N`` are
sockets; ``dram`` below them lies outside of a package and is added; ``core`` and ``uncore`` lie inside. ``energy_uj``
begins at 0 again once it has reached ``max_energy_range_uj``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ingot.core.gpu import Nvml

#: The tree of one control type; ``intel-rapl-mmio`` shows the same packages again.
_TREE, _ZONES = "sys/class/powercap", "intel-rapl:[0-9]*"
#: Between two looks at a GPU's power, where it does not count energy.
_SAMPLE_S = 0.02


class Counter(Protocol):
    """What counts joules; entered while it is used."""

    @property
    def words(self) -> str:
        """What is counted."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *_: object) -> None:
        """End."""
        ...

    def joules(self) -> float:
        """Joules since some moment before; never less than it said last."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """Why energy cannot be measured here."""

    reason: str


@dataclass
class _Zone:
    """One zone of the powercap tree."""

    folder: Path
    name: str
    limit: int
    last: int
    total: int = 0

    def read(self) -> int:
        """Microjoules since it was opened. It may have begun at 0 again once: it is read more often than that."""
        now = _number(self.folder / "energy_uj")
        self.total += now - self.last if now >= self.last else now + self.limit - self.last
        self.last = now
        return self.total


@dataclass
class Rapl:
    """The processors' packages, with their memory where that is counted apart."""

    zones: list[_Zone]

    @classmethod
    def open(cls, root: Path = Path("/")) -> Rapl | Unreadable:
        """``root`` is where ``sys`` is."""
        tree = root / _TREE
        found = [folder for folder in sorted(tree.glob(_ZONES)) if _counts(folder)]
        if not found:
            return Unreadable("this machine shows no counters of its processors' energy (RAPL, /sys/class/powercap)")
        try:
            return cls([_zone(folder) for folder in found])
        except PermissionError:
            return Unreadable("the processors' energy counters (RAPL) may be read by root only, as Linux has it")
        except (OSError, ValueError) as error:
            return Unreadable(f"the processors' energy counters (RAPL) cannot be read: {error}")

    @property
    def words(self) -> str:
        """The zones that are counted."""
        return f"RAPL {'+'.join(zone.name for zone in self.zones)}"

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def joules(self) -> float:
        """Joules since it was opened."""
        return sum(zone.read() for zone in self.zones) / 1e6


def _counts(folder: Path) -> bool:
    """Whether a zone is to be added: a package, or memory beside one. ``psys`` holds both again."""
    below = folder.name.count(":") == 2
    name = _text(folder / "name")
    return name == "dram" if below else name.startswith("package")


def _zone(folder: Path) -> _Zone:
    limit = _number(folder / "max_energy_range_uj")
    return _Zone(folder, _text(folder / "name"), limit, _number(folder / "energy_uj"))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(path.read_text())


@dataclass
class Counted:
    """A GPU that counts its energy."""

    nvml: Nvml
    uuid: str | None
    words: str = "NVML's counter of the GPU"

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def joules(self) -> float:
        """Joules since the driver was loaded."""
        return self.nvml.energy_j(self.uuid) or 0.0


@dataclass
class Sampled:
    """A GPU that says its power only: looked at again and again, trapezoids added."""

    nvml: Nvml
    uuid: str | None
    clock: Callable[[], float] = time.monotonic
    words: str = f"the GPU's power by NVML, integrated over samples {_SAMPLE_S * 1000:.0f} ms apart"
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _total: float = 0.0
    _last: tuple[float, float] | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to look."""
        self.look()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End looking."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.look()

    def look(self) -> None:
        """Add what was taken since the last look."""
        with self._lock:
            watts, now = self.nvml.power_w(self.uuid), self.clock()
            if watts is None:
                return
            if self._last is not None:
                then, before = self._last
                self._total += (now - then) * (watts + before) / 2
            self._last = (now, watts)

    def joules(self) -> float:
        """Joules since it began."""
        self.look()
        return self._total


class Meter:
    """All counters of one computation together; entered while it runs."""

    def __init__(self, counters: list[Counter]) -> None:
        self._counters = counters
        self.words = " + ".join(counter.words for counter in counters)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin."""
        for counter in self._counters:
            self._stack.enter_context(counter)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._stack.__exit__(kind, error, trace)

    def joules(self) -> float:
        """Joules of all since some moment before."""
        return sum(counter.joules() for counter in self._counters)


def open_meter(
    gpu: str | None, *, root: Path = Path("/"), nvml: Callable[[], Nvml | None] = Nvml.open
) -> Meter | Unreadable:
    """What measures a computation on the processor (``gpu`` None) or on the GPU of a UUID (empty: on all)."""
    processors = Rapl.open(root)
    if gpu is None:
        return processors if isinstance(processors, Unreadable) else Meter([processors])
    device = _of_gpu(nvml(), gpu or None)
    if isinstance(device, Unreadable):
        return device
    return Meter([device] if isinstance(processors, Unreadable) else [device, processors])


def _of_gpu(nvml: Nvml | None, uuid: str | None) -> Counted | Sampled | Unreadable:
    if nvml is None:
        return Unreadable("the GPU's library that measures (NVML) cannot be loaded")
    try:
        if nvml.energy_j(uuid) is not None:
            return Counted(nvml, uuid)
        if nvml.power_w(uuid) is not None:
            return Sampled(nvml, uuid)
    except AttributeError:
        pass  # an old driver's library, without these functions
    return Unreadable("the GPU tells neither its energy nor its power (NVML)")
