"""Run a job in a child process and measure it: through the warm fork server on Linux, in a plain child elsewhere.

A crash, a kill or an exhausted memory in the child fails that job with a clear message and nothing else. Peak
memory is sampled from the system while the child runs, its descendants included: anonymous memory less what the
child inherited from the server, and resident memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ingot import errors
from ingot.core import disk, procfs
from ingot.core.environment import environment
from ingot.core.gpu import Meter, Nvml
from ingot.core.redact import environment_secrets, redact, scrub_file
from ingot.errors import StageFailed

#: Called with each progress or phase message of the running stage.
Listener = Callable[[dict[str, Any]], None]

#: How long the server may take to end by itself.
_PATIENCE_S = 5.0


#: What a stage gave back, as plain data: see ``stage.Done``.
Result = dict[str, Any]


@dataclass
class Outcome:
    """What a finished job gave: metrics as plain data, how the network was, CPU seconds, peak memory in bytes.

    ``peak_device`` is the most memory of GPUs that it held, ``energy_j`` what these took meanwhile.
    ``results`` holds what the stage gave back, one for each artifact of the job (the metrics are the first one's).
    """

    metrics: dict[str, dict[str, Any]]
    network: str
    cpu_s: float
    peak_anon: int | None
    peak_rss: int | None
    results: list[Result] = field(default_factory=list)
    peak_device: int | None = None
    energy_j: float | None = None

    def of(self, number: int) -> Result:
        """What the stage gave back for one artifact of the job."""
        return self.results[number] if self.results else {"metrics": self.metrics}


@dataclass
class _Run:
    """What is heard of a running job."""

    pid: int = 0
    inherited: int = 0
    network: str = "not isolated"
    result: list[Result] | None = None
    error: dict[str, Any] | None = None
    exit: dict[str, Any] | None = None
    peak: procfs.Memory = field(default_factory=procfs.Memory)
    meter: Meter | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Executor:
    """Starts jobs and waits for them; one per process, used from several threads."""

    def __init__(self, nvml: Callable[[], Nvml | None] = Nvml.open) -> None:
        self._nvml = cache(nvml)
        self._lock = threading.Lock()
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._running: set[int] = set()
        self._logs: set[Path] = set()

    def run(self, job: Mapping[str, Any], log: Path, lock_fd: int, listener: Listener) -> Outcome:
        """Run one job to its end. Raises what the stage raised, or StageFailed when the child died."""
        ours, theirs = socket.socketpair()
        run = _Run(meter=self._meter(job))
        self._logs.add(log)
        with ours, log.open("ab") as log_file:
            with theirs:
                plain = self._start(job, theirs, log_file.fileno(), lock_fd)
            sampler, heard = threading.Thread(target=_sample, args=(run,), daemon=True), False
            try:
                if plain is not None:
                    self._begin(run, plain.pid, sampler)
                # A child that died at once cannot take its job; its end is told below.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    ours.sendall(json.dumps(dict(job)).encode() + b"\n")
                self._listen(ours, run, listener, sampler)
                heard = True
            finally:
                run.done.set()
                if run.pid and run.exit is None and (plain is None or not heard):
                    # Nobody listens to it any more, or the server, which would end what it has started, is gone.
                    _kill_group(run.pid)
                if plain is not None:
                    run.exit = _wait(plain)
                self._running.discard(run.pid)
        if sampler.ident is not None:
            sampler.join()
        # What the child could see of secrets may be in what a library printed or raised.
        with disk.explained(log):
            scrub_file(log, environment_secrets())
        self._logs.discard(log)
        return _conclude(run, log)

    def _meter(self, job: Mapping[str, Any]) -> Meter | None:
        """What measures the GPUs while a job runs that may use one; None where nothing can."""
        nvml = self._nvml() if job.get("device") in ("auto", "cuda") else None
        meter = None if nvml is None else Meter(nvml)
        if meter is not None:
            meter.begin()
        return meter

    def _start(
        self, job: Mapping[str, Any], theirs: socket.socket, log: int, lock_fd: int
    ) -> subprocess.Popen[bytes] | None:
        if sys.platform == "linux" and not job["network"]:
            # The job itself goes over its own socket: one message to the server holds no more than some 200 kB.
            self._request({"preload": job["preload"]}, [theirs.fileno(), log, lock_fd])
            return None
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ingot.core.worker", str(theirs.fileno()), str(os.getpid())],
            env=environment(network=bool(job["network"])),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs.fileno(), lock_fd),
            start_new_session=True,
        )

    def _request(self, request: dict[str, Any], descriptors: list[int]) -> None:
        with self._lock:
            data = [json.dumps(request).encode()]
            if self._server is not None:
                try:
                    socket.send_fds(self._server[1], data, descriptors)
                except OSError:
                    # The server died since the last job; a new one takes this job.
                    self._end_server()
                else:
                    return
            self._server = _start_server()
            socket.send_fds(self._server[1], data, descriptors)

    def _listen(self, ours: socket.socket, run: _Run, listener: Listener, sampler: threading.Thread) -> None:
        plain = run.pid != 0
        with ours.makefile("rb") as reader:
            for line in reader:
                try:
                    message = json.loads(line)
                except ValueError:
                    # The child was killed in the middle of a message; what comes next says so.
                    continue
                kind = message.pop("t")
                if kind == "pid":
                    run.inherited = message["inherited_anon"]
                    self._begin(run, message["pid"], sampler)
                elif kind == "started":
                    run.network = message["network"]
                elif kind in ("result", "error"):
                    run.result, run.error = message.get("outcomes"), message if kind == "error" else None
                    if plain:
                        # It says no more, and what it left running may hold the socket open for ever.
                        return
                elif kind == "exit":
                    run.exit = message
                    return
                else:
                    listener({"t": kind, **message})

    def _begin(self, run: _Run, pid: int, sampler: threading.Thread) -> None:
        run.pid = pid
        self._running.add(pid)
        sampler.start()

    def kill_all(self) -> None:
        """Kill every running stage with everything it started, at once; safe in a signal handler.

        Whoever waits for them may not come to take secrets out of their logs, so that is done here too.
        """
        for pid in list(self._running):
            _kill_group(pid)
        for log in list(self._logs):
            with contextlib.suppress(OSError, ValueError):
                scrub_file(log, environment_secrets())

    def close(self) -> None:
        """End the fork server."""
        with self._lock:
            self._end_server()

    def _end_server(self) -> None:
        if self._server is not None:
            process, control = self._server
            control.close()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                # In the middle of an import, say; its children are told by the kernel.
                process.kill()
                process.wait()
            self._server = None


def _start_server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ingot.core.forkserver", str(theirs.fileno())],
            env=environment(network=False),
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    return process, ours


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    _pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    # Programs that the stage left running must not write after its end.
    _kill_group(child.pid)
    return {"status": child.returncode, "cpu": usage.ru_utime + usage.ru_stime, "maxrss": usage.ru_maxrss}


def _sample(run: _Run) -> None:
    """Keep the largest memory seen, every 5 ms at first and every 50 ms later."""
    interval = 0.005
    while not run.done.wait(interval):
        now = procfs.tree_memory(run.pid)
        if run.meter is not None:
            run.meter.look(procfs.descendants(run.pid))
        run.peak = procfs.Memory(max(run.peak.anon, now.anon - run.inherited), max(run.peak.resident, now.resident))
        interval = min(interval * 1.2, 0.05)


def _conclude(run: _Run, log: Path) -> Outcome:
    if run.error is not None:
        raise _redacted(errors.from_dict(run.error))
    if run.result is None or run.exit is None or run.exit["status"] != 0:
        raise _death(run, log)
    sampled = run.peak.resident > 0
    return Outcome(
        metrics=run.result[0]["metrics"],
        network=run.network,
        cpu_s=float(run.exit["cpu"]),
        peak_anon=run.peak.anon if sampled else None,
        peak_rss=run.peak.resident if sampled else None,
        results=run.result,
        peak_device=None if run.meter is None else run.meter.peak_bytes,
        energy_j=None if run.meter is None else run.meter.energy_j(),
    )


def _redacted(error: errors.IngotError) -> errors.IngotError:
    """The error without the secrets that a library's words may hold."""
    secrets = environment_secrets()
    error.what = redact(error.what, secrets)
    error.facts = tuple(redact(fact, secrets) for fact in error.facts)
    error.hint = None if error.hint is None else redact(error.hint, secrets)
    error.args = (error.what,)
    return error


def _death(run: _Run, log: Path) -> StageFailed:
    if run.exit is None:
        return StageFailed("E-STAGE-DIED", "the process that runs stages is gone", log=str(log))
    status = int(run.exit["status"])
    if status >= 0:
        return StageFailed("E-STAGE-DIED", f"the stage ended with status {status} and no result", log=str(log))
    name = signal.Signals(-status).name
    facts, hint = [], None
    if -status == signal.SIGKILL:
        _available, total = procfs.available()
        facts.append(f"its memory peaked at {run.peak.resident / 1e9:.2f} GB of the machine's {total / 1e9:.1f} GB")
        if run.peak.resident > total / 4:
            hint = "most likely the system ran out of memory and killed it: dmesg says so"
    return StageFailed("E-STAGE-KILLED", f"the stage was killed by {name}", facts=facts, hint=hint, log=str(log))
