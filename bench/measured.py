"""Run a program and measure it: seconds, peak memory of its processes, and the most bytes below a folder."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.core import procfs
from ingot.core.staging import bytes_below


@dataclass(frozen=True)
class Measured:
    """Wall seconds; peak anonymous and resident memory in bytes; the high-water mark of a folder's bytes."""

    seconds: float
    anonymous: int
    resident: int
    disk: int


def measure(command: Sequence[str], *, cwd: Path, env: dict[str, str], watched: Path) -> Measured:
    """Run to its end; SystemExit with its output when it fails.

    Memory is sampled every 20 ms, the folder five times a second.
    """
    log = cwd / "bench.log"
    start = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        watch = _Watch(process.pid, watched)
        watch.start()
        status = process.wait()
        seconds = time.perf_counter() - start
        watch.over.set()
        watch.join()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-4000:]}")
    return Measured(seconds, watch.anonymous, watch.resident, watch.disk)


class _Watch(threading.Thread):
    def __init__(self, pid: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.anonymous = self.resident = self.disk = 0
        self._pid, self._folder = pid, folder

    def run(self) -> None:
        """Sample until told that it is over."""
        rounds = 0
        while not self.over.wait(0.02):
            memory = procfs.tree_memory(self._pid)
            self.anonymous = max(self.anonymous, memory.anon)
            self.resident = max(self.resident, memory.resident)
            if rounds % 10 == 0:
                self.disk = max(self.disk, bytes_below(self._folder))
            rounds += 1
        self.disk = max(self.disk, bytes_below(self._folder))
