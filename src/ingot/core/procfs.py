"""Memory and state of processes as the system counts them (Linux ``/proc``); elsewhere nothing is known."""

from __future__ import annotations

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


def available() -> tuple[int, int]:
    """(available, total) memory of the machine in bytes; zeros where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return 0, 0
    return _kilobytes(fields.get("MemAvailable")), _kilobytes(fields.get("MemTotal"))
