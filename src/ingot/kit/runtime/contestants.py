"""Runtimes that are measured: each a process of its own (``kit.runtime.child``) that runs when it is told to.

Laws. Between its turns a process is stopped by the system, so that no thread of it that still spins takes the
processor from the one whose turn it is. Its peak of anonymous memory is looked at from outside, every 20 ms.
What goes wrong in it, a crash included, is one clear failure (E-BENCHMARK) that names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ingot.core import procfs
from ingot.errors import IngotError, StageFailed, from_dict
from ingot.kit.runtime.timing import Run

_LOOK_S = 0.02
_LAST_LINES = 4


@dataclass(frozen=True)
class Entry:
    """What a process opens: a ``runtime`` by its name, a model's folder or an archive, and how."""

    name: str
    runtime: str
    path: Path
    context: int
    threads: int

    def plain(self) -> dict[str, object]:
        """As the process reads it."""
        return {"runtime": self.runtime, "path": str(self.path), "context": self.context, "threads": self.threads}


class Watch:
    """The peak of anonymous memory of processes, looked at by a thread; nothing where the system does not say it."""

    def __init__(self) -> None:
        self._peaks: dict[int, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, pid: int) -> None:
        """Look at a process from now on."""
        self._peaks = {**self._peaks, pid: 0}

    def peak(self, pid: int) -> int | None:
        """Bytes, or None where nothing was seen."""
        self._look(pid)
        return self._peaks[pid] or None

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_LOOK_S):
            for pid in self._peaks:
                self._look(pid)

    def _look(self, pid: int) -> None:
        self._peaks[pid] = max(self._peaks[pid], procfs.memory(pid).anon)


class Contestant:
    """One process. Use as a context manager: it is ended whatever happens."""

    def __init__(self, name: str, scratch: Path, threads: int) -> None:
        self.name = name
        self._log = scratch / f"{name}.log"
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "-P", "-m", "ingot.kit.runtime.child", str(os.getpid())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=scratch, env=env
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(OSError):
            sys.stderr.write(self._log.read_text("utf-8", "replace"))

    def make(self, entry: Entry, archive: Path) -> Mapping[str, Any]:
        """Let it make an archive of a model."""
        return self._ask({"do": "make", **entry.plain(), "archive": str(archive)})

    def open(self, entry: Entry) -> Mapping[str, Any]:
        """Let it load a model; what it says of the runtime. It is stopped then."""
        said = self._ask({"do": "open", **entry.plain()})
        self._stop()
        return said

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> Run:
        """Its turn: one run over a prompt and the tokens that follow it."""
        self._signal(signal.SIGCONT)
        said = self._ask({"do": "run", "prompt": list(prompt), "tokens": list(tokens)})
        self._stop()
        return Run(float(said["first"]), tuple(map(float, said["steps"])), tuple(map(int, said["said"])))

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):
            # it is told at once and stops a little later; an end is left to be found by whoever asks it
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        # one that has just died is noticed when it is asked
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _ask(self, question: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise self._failed(from_dict(said["error"]))
        return said

    def _failed(self, error: IngotError) -> IngotError:
        facts = [f"{error.code}: {error.what}", *error.facts]
        return StageFailed("E-BENCHMARK", f"{self.name} cannot be measured", facts=facts, hint=error.hint or _HINT)

    def _ended(self) -> StageFailed:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        facts = lines[-_LAST_LINES:]
        return StageFailed("E-BENCHMARK", f"{self.name} ended while it was measured: {how}", facts=facts, hint=_HINT)


_HINT = "a baseline can be left out: benchmark.baselines"
