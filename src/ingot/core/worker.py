"""The inside of a stage's child process: prepare the process, run the stage, report over one socket.

A job is plain data (JSON); messages are JSON lines: ``started``, ``phase``, ``progress``, then ``result`` or ``error``.
Everything the stage or its libraries print goes to the log that the builder gave as standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ingot.core import disk, stage
from ingot.errors import IngotError, StageFailed

#: Between two progress messages, so that a fast loop does not drown its reader.
_INTERVAL_S = 0.05
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


class Channel:
    """The worker's end of the socket; also the ``Progress`` that a stage is given."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._last = 0.0

    def send(self, kind: str, **fields: object) -> None:
        """Send one message; a builder that is gone ends this process."""
        line = json.dumps({"t": kind, **fields}, default=str) + "\n"
        try:
            self._connection.sendall(line.encode())
        except OSError:
            os._exit(1)

    def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
        """Send progress, at most every ``_INTERVAL_S``."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL_S or (total is not None and done >= total):
            self._last = now
            self.send("progress", done=done, total=total, unit=unit, live=live)

    def phase(self, name: str) -> None:
        """Say what the stage does now."""
        self._last = 0.0
        self.send("phase", name=name)


def run_job(job: dict[str, Any], connection: socket.socket) -> None:
    """Run one job in this process; every outcome is one ``result`` or ``error`` message."""
    channel = Channel(connection)
    try:
        network = _prepare(job)
        channel.send("started", network=network)
        cls = stage.load_kind(job["kind"])
        params = cls.model_validate_json(json.dumps(job["params"]), strict=True)
        given = stage.Given(
            inputs={role: tuple(Path(path) for path in paths) for role, paths in job["inputs"].items()},
            digests={role: tuple(digests) for role, digests in job["digests"].items()},
            scratch=Path(job["scratch"]),
            sources=tuple(Path(path) for path in job["sources"]),
            seed=job["seed"],
            threads=job["threads"],
        )
        metrics = params.run(given, Path(job["out"]), channel)
        channel.send("result", metrics={name: metric.to_dict() for name, metric in metrics.items()})
    except IngotError as error:
        channel.send("error", **error.to_dict())
    except MemoryError as error:
        traceback.print_exc()
        channel.send("error", **StageFailed("E-MEMORY", f"the stage ran out of memory: {error}").to_dict())
    except OSError as error:
        traceback.print_exc()
        channel.send("error", **disk.failure(error, Path(job["out"])).to_dict())
    except Exception as error:  # noqa: BLE001 - whatever a library raises becomes one clear message; the traceback is in the log
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        channel.send("error", **StageFailed("E-STAGE", f"{type(error).__name__}: {text[0][:500]}").to_dict())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _prepare(job: dict[str, Any]) -> str:
    """Bound what this process can do; returns how the network is: isolated, not isolated or allowed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    os.chdir(job["scratch"])
    os.environ.update({"HOME": job["scratch"], "TMPDIR": job["scratch"], "HF_HOME": job["scratch"]})
    # tempfile remembers the first folder it chose, which under the fork server was another process's.
    import tempfile

    tempfile.tempdir = None
    if job["network"]:
        return "allowed"
    return "isolated" if _leave_network() else "not isolated"


def _leave_network() -> bool:
    """Move into an empty network namespace where the system allows it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    # Without the maps this process would write files as the overflow user.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    return True


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux); ``parent`` closes the race at start."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Run one job in a process of its own: ``python -m ingot.core.worker FD PARENT``, the job as the first line."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    connection = socket.socket(fileno=descriptor)
    with connection.makefile("rb") as reader:
        job = json.loads(reader.readline())
    run_job(job, connection)


if __name__ == "__main__":
    main()
