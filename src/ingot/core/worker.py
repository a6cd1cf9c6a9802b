"""The inside of a stage's child process: prepare the process, run the stage, report over one socket.

A job is plain data (JSON); messages are JSON lines: ``started``, ``phase``, ``progress``, then ``result`` or ``error``.
A job builds one artifact (``params``, ``out``), or with ``others`` several in one pass, each ``{params, out}``: then
the result holds as many outcomes. In ``virtual`` it has, by role, the job that would write that input: plain data of
the same form, to any depth, which is never run by itself.
Everything the stage or its libraries print goes to the log that the builder gave as standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.core import disk, stage
from ingot.core.digest import FileRecord
from ingot.errors import IngotError, StageFailed

#: Between two progress messages, so that a fast loop does not drown its reader.
_INTERVAL_S = 0.05
#: What the disk or the system's limits are to blame for; other errors of the system are the stage's own.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}
    | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
)
_GPU_IS_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
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
        channel.send("result", outcomes=[plain_done(done) for done in _run(job, channel)])
    except IngotError as error:
        channel.send("error", **error.to_dict())
    except MemoryError as error:
        _print_traceback()
        channel.send("error", **StageFailed("E-MEMORY", f"the stage ran out of memory: {error}").to_dict())
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a library raises becomes one clear message; the traceback is in the log
        _print_traceback()
        channel.send("error", **_explained(error, Path(job["out"])).to_dict())
    finally:
        # The log's disk may be full; what the stage did has been reported.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


def _run(job: Mapping[str, Any], channel: Channel) -> list[stage.Done]:
    """Run the stage, or several of one kind in one pass."""
    first, given = made(job), given_of(job)
    others = [made({**job, **other}) for other in job.get("others", ())]
    if not others:
        return [stage.Done.of(first.run(given, Path(job["out"]), channel))]
    outs = [Path(job["out"]), *(Path(other["out"]) for other in job["others"])]
    found = type(first).run_many([first, *others], given, outs, channel)
    if len(found) != len(outs):
        raise StageFailed("E-STAGE", f"one pass for {len(outs)} results gave {len(found)}")
    return [stage.Done.of(each) for each in found]


def made(job: Mapping[str, Any]) -> stage.Stage:
    """The stage of a job with its parameters."""
    return stage.load_kind(job["kind"]).model_validate_json(json.dumps(job["params"]), strict=True)


def given_of(job: Mapping[str, Any]) -> stage.Given:
    """What the stage of a job may read, with what its virtual inputs may."""
    return stage.Given(
        inputs={role: tuple(Path(path) for path in paths) for role, paths in job["inputs"].items()},
        digests={role: tuple(digests) for role, digests in job["digests"].items()},
        scratch=Path(job["scratch"]),
        sources=tuple(Path(path) for path in job.get("sources", ())),
        seed=job["seed"],
        threads=job["threads"],
        files={
            role: tuple({record["path"]: FileRecord(**record) for record in records} for records in listed)
            for role, listed in job.get("files", {}).items()
        },
        virtual={role: stage.Virtual(made(below), given_of(below)) for role, below in job.get("virtual", {}).items()},
        earlier=tuple(stage.Earlier(**{**item, "folder": Path(item["folder"])}) for item in job.get("earlier", ())),
        tensors=job.get("tensors", {}),
        checkpoints=Path(job["checkpoints"]) if "checkpoints" in job else None,
        key=job.get("key", ""),
    )


def plain_done(done: stage.Done) -> dict[str, Any]:
    """What a run gave back as plain data; StageFailed (E-METRIC) as ``plain_metrics``."""
    return {
        "metrics": plain_metrics(done.metrics),
        "files": [record.to_dict() for record in done.files],
        "tensors": dict(done.tensors),
        "passed": {role: plain_done(below) for role, below in done.passed.items()},
        "notes": dict(done.notes),
        "blocks": dict(done.blocks),
    }


def _print_traceback() -> None:
    """For the log, whose disk may be full: then what went wrong must be reported all the same."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def _explained(error: BaseException, out: Path) -> IngotError:
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return disk.failure(error, out)
    if _of_a_full_gpu(error):
        return StageFailed(
            "E-DEVICE-MEMORY",
            "the GPU has too little memory left for this target",
            facts=[str(error).splitlines()[0][:300]],
            hint="use a smaller dtype, fewer or shorter documents or 'device: cpu', or end what else uses the GPU",
        )
    # Libraries raise OSError for much else (a model that is not found, a connection): their words say more.
    text = str(error).strip().splitlines() or [""]
    return StageFailed("E-STAGE", f"{type(error).__name__}: {text[0][:500]}")


def _of_a_full_gpu(error: BaseException) -> bool:
    """Whether torch, if anything has imported it, says by this error that a GPU is full: CUDA itself and its libraries
    have words of their own where there is no room to begin."""
    kind = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _GPU_IS_FULL)
    return told or (kind is not None and isinstance(error, kind))


def plain_metrics(metrics: stage.Metrics) -> dict[str, dict[str, object]]:
    """Metrics as plain data; StageFailed (E-METRIC) names one that no log can hold, before anything is published.

    NaN and infinities have no canonical JSON form; a number of numpy's that is neither int nor float would become text.
    """
    plain = {}
    for name, metric in metrics.items():
        numbers = {"value": metric.value, "n": 0 if metric.n is None else metric.n}
        low, high = metric.interval or (0, 0)
        numbers |= {"lower end": low, "upper end": high}
        for part, number in numbers.items():
            if not _is_number(number):
                what = f"the {part} of metric {name!r} is no number to record"
                raise StageFailed("E-METRIC", f"{what}: {number!r} ({type(number).__name__})")
        if not name or "." in name or not all(isinstance(text, str) for text in (name, metric.unit, metric.method)):
            raise StageFailed("E-METRIC", f"the metric {name!r} has no usable name, unit or method")
        plain[name] = metric.to_dict()
    return plain


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    # Larger integers have no exact form in canonical JSON.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def read_job(connection: socket.socket) -> dict[str, Any]:
    """The job: the first line that the builder sends."""
    with connection.makefile("rb") as reader:
        job: dict[str, Any] = json.loads(reader.readline())
    return job


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
    run_job(read_job(connection), connection)
    # Threads that a library left running would keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    main()
