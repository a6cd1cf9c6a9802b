"""A process that answers questions of strangers within bounds: CPU time for each, memory for all of them.

What a stranger wrote (a chat template, a regular expression) may run for ever or want all memory, and no thread of
this process could stop it. ``python -m MODULE 2`` reads one JSON object a line and answers with one; a question that
takes more ends the process, and the next one starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20


class Bounded:
    """The process of a module, started when it is first asked, and again after a question that brought it down."""

    def __init__(self, module: str, cpu_seconds: int = CPU_SECONDS) -> None:
        self._module = module
        self._seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer, or None where the question took more than it is given."""
        line = json.dumps(dict(question)).encode() + b"\n"
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                said = process.stdout.readline()
            except BrokenPipeError:
                said = b""
            if said.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(said)
                return answer
            self._end()
        return None

    @property
    def limits(self) -> str:
        """What a question is given, in words."""
        return f"{self._seconds} s of CPU time and {MEMORY_BYTES >> 20} MiB"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-P", "-m", self._module, str(self._seconds)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()


def serve(answer: Callable[..., Mapping[str, Any]]) -> None:
    """Answer each line of standard input with one on standard output; the argument is the CPU time of each."""
    seconds = int(sys.argv[1])
    # Ctrl-C is heard by every process of a terminal; this one ends when there is nobody left to ask it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # The kernel counts whole seconds since the start of the process and ends it.
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
        sys.stdout.buffer.write(json.dumps(dict(answer(**json.loads(line)))).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit(which: int, value: int) -> None:
    # A system that does not know this limit has the others.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value, resource.getrlimit(which)[1]))
