"""Run programs of strangers: what each may take, and how each ended.

A program passes when all of it ran without an exception. What it prints, and the status with which it ends, say
nothing: the verdict is a number that only the sandbox's own code knows. A program that was made to deceive its own
tests can (an ``==`` that is always true deceives every ``assert``); what it cannot do is harm anything.

The bounds are those of ``kit.sandbox.inside``: a filter of system calls (no socket, no process, no program, no signal),
Landlock (the standard library is read, nothing else), limits of CPU time, memory and file size, an empty environment,
and where the system allows it namespaces of its own (network, processes, mounts), with them 16 MiB of folder to write.
Where the filter or Landlock cannot be had, nothing runs (E-SANDBOX).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ingot.errors import StageFailed

_INSIDE = Path(__file__).with_name("inside.py")
_HINT = "programs that a model wrote run on Linux 5.13 or later, with seccomp and Landlock; leave such tasks out here"
#: What must fail in a sandbox, tried before the first program.
_TRIALS = {
    "a process": "import os\nif os.fork() == 0:\n    os._exit(0)",
    "a socket": "import socket\nsocket.socket()",
    "a foreign file": "import os\nos.listdir({folder!r})",
}


@dataclass(frozen=True)
class Limits:
    """What one program is given; the time of the clock is twice that of the processor and five seconds."""

    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20

    @property
    def wall_seconds(self) -> int:
        """Seconds of the clock: a program that sleeps takes no CPU time."""
        return 2 * self.cpu_seconds + 5


@dataclass(frozen=True)
class Verdict:
    """How a program ended; ``why`` it has not passed: an exception's name, ``cpu time``, ``wall time``, …."""

    passed: bool
    why: str


class Sandbox:
    """Runs programs one by one. ``how`` tells what bounds them here."""

    def __init__(self, limits: Limits, scratch: Path) -> None:
        self._limits = limits
        self._scratch = scratch

    @cached_property
    def how(self) -> Mapping[str, str]:
        """How the network and the folder are, after what must fail was tried.

        StageFailed (E-SANDBOX) where programs cannot be bounded here.
        """
        if sys.platform != "linux":
            raise StageFailed("E-SANDBOX", f"there is no sandbox for programs on {sys.platform}", hint=_HINT)
        verdict, told = self._ran("pass")
        if not verdict.passed:
            raise StageFailed("E-SANDBOX", f"the sandbox runs no program: {verdict.why}", hint=_HINT)
        for what, program in _TRIALS.items():
            if self._ran(program.format(folder=str(_INSIDE.parent)))[0].passed:
                raise StageFailed("E-SANDBOX", f"a program in the sandbox got {what}", hint=_HINT)
        return told

    def run(self, program: str) -> Verdict:
        """Run one program to its end or to its limits. StageFailed: E-SANDBOX."""
        assert self.how, "the sandbox was tried"
        return self._ran(program)[0]

    def _ran(self, program: str) -> tuple[Verdict, Mapping[str, str]]:
        token = secrets.token_hex(16)
        order = {
            "program": program,
            "token": token,
            "cpu_seconds": self._limits.cpu_seconds,
            "memory_bytes": self._limits.memory_bytes,
        }
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            late, said, status = _launch(json.dumps(order).encode(), folder, self._limits.wall_seconds)
        lines = [line for line in map(_read, said[:4096].splitlines()) if line]
        if unavailable := next((line["unavailable"] for line in lines if "unavailable" in line), None):
            raise StageFailed("E-SANDBOX", f"programs cannot be bounded here: {unavailable}", hint=_HINT)
        told: Mapping[str, str] = next((line["ready"] for line in lines if "ready" in line), {})
        if any(line.get("passed") == token for line in lines):
            return Verdict(passed=True, why="passed"), told
        error = next((str(line["error"]) for line in lines if "error" in line), None)
        return Verdict(passed=False, why="wall time" if late else error or _why(status)), told


def _launch(order: bytes, folder: str, seconds: int) -> tuple[bool, bytes, int]:
    """(whether it took too long, what it said, its exit status) of a sandboxed process, ended for certain."""
    command = [sys.executable, "-I", "-S", str(_INSIDE)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(order, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True, b"", -signal.SIGKILL
    else:
        return False, said, process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _read(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}


def _why(status: int) -> str:
    number = status - 128 if status > 128 else -status if status < 0 else 0
    if number in {signal.SIGXCPU, signal.SIGKILL}:
        return "cpu time"
    return (
        f"killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"ended by itself ({status})"
    )
