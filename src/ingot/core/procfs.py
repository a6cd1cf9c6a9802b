"""Memory and state of processes as the system counts them (Linux ``/proc``); elsewhere nothing is known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes of anonymous memory (RssAnon) and of all resident memory (VmRSS)."""

    anon: int = 0
    resident: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.anon + other.anon, self.resident + other.resident)


def memory(pid: int) -> Memory:
    """Memory of one process; zero when it is gone or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Memory()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Memory(_kilobytes(fields.get("RssAnon")), _kilobytes(fields.get("VmRSS")))


def state(pid: int) -> str | None:
    """The state of a process as one letter (``R``, ``S``, ``T`` stopped, ``Z`` ended, …); None when it is gone.

    ``?`` where the system does not say.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None if Path("/proc/self/stat").exists() else "?"


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kilobytes(field: str | None) -> int:
    return int(field.split()[0]) * 1024 if field else 0


def descendants(pid: int) -> list[int]:
    """The process and all its living descendants."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def tree_memory(pid: int) -> Memory:
    """Memory of a process and all its descendants together."""
    return sum((memory(each) for each in descendants(pid)), Memory())


def available(root: Path = Path("/")) -> tuple[int, int]:
    """(available, total) memory in bytes: of the machine, or of a control group that allows less; zeros where unknown.

    ``root`` is where ``proc`` and ``sys`` are.
    """
    try:
        fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    except OSError:
        return 0, 0
    free, total = _kilobytes(fields.get("MemAvailable")), _kilobytes(fields.get("MemTotal"))
    for group in _groups(root):
        limit = _group_limit(group)
        if limit is not None and limit[1] < total:
            free, total = min(free, limit[0]), limit[1]
    return free, total


def _groups(root: Path) -> list[Path]:
    """The folders of this process's memory control groups, and of those that they lie in (version 2, then 1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _number, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        path = base / name.lstrip("/")
        found += [path, *(folder for folder in path.parents if folder.is_relative_to(base))]
    return found


def _group_limit(group: Path) -> tuple[int, int] | None:
    """(what is left, the limit) of a control group; None where it has none. Clean file pages are counted as left."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            total, used = int((group / limit).read_text()), int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            # ``max``, or no such file: the root group has none.
            continue
        reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return max(total - used + reclaimable, 0), total
    return None
