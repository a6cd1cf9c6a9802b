"""A warm process that imports the stages' heavy packages once and forks a child for each job.

It only imports: no tensor operation and no CUDA happens here, because a child forked after one would hang. It is
started by ``executor`` with one control socket; each request names modules to import and carries three descriptors
(the job's socket, on which the child then reads the job, the log, the staging lock). When the control socket
closes, the builder is gone: children are killed and the server ends.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ingot.core import gpu, procfs
from ingot.core.worker import die_with_parent, read_job, run_job
from ingot.errors import StageFailed

#: What starts CUDA as soon as it is imported (peft: through bitsandbytes): with a GPU, each child imports it itself.
STARTS_CUDA = frozenset({"peft", "bitsandbytes"})

_DESCRIPTORS = 3
_MESSAGE = 1 << 20


def _fork() -> int:
    """Fork; Python, from 3.12 on, warns of threads that it does not know: those of numpy's OpenBLAS, which ends them
    before a fork and starts them again after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def without_cuda(modules: Sequence[str], *, has_gpu: bool) -> list[str]:
    """The modules that may be imported before a fork: where there is a ``gpu``, no child of a process that has
    started CUDA can use it."""
    return [name for name in modules if not (has_gpu and name in STARTS_CUDA)]


class Server:
    """The loop of the server; ``_jobs`` maps a child's pid to the socket on which its end is reported."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._jobs: dict[int, socket.socket] = {}
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.settimeout(0)

    def run(self) -> None:
        """Serve until the builder is gone."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ, self._accept)
            selector.register(self._wake_read, selectors.EVENT_READ, self._reap)
            serving = True
            while serving:
                for key, _events in selector.select():
                    serving &= key.data()
        # The children die after the sockets are closed, and Python complains when it cannot tell of a signal.
        signal.set_wakeup_fd(-1)
        for pid in self._jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _accept(self) -> bool:
        data, ancillary, _flags, _address = self._control.recvmsg(_MESSAGE, socket.CMSG_LEN(4 * _DESCRIPTORS))
        if not data:
            return False
        descriptors = array.array("i")
        for _level, _kind, payload in ancillary:
            descriptors.frombytes(payload)
        request = json.loads(data)
        connection, log, lock = socket.socket(fileno=descriptors[0]), descriptors[1], descriptors[2]
        self._import(without_cuda(request["preload"], has_gpu=gpu.visible()), log)
        self._start(connection, (log, lock))
        os.close(log)
        os.close(lock)
        return True

    def _import(self, modules: list[str], log: int) -> None:
        """Import what the job wants; a failure is left to the child, which meets and reports it again."""
        saved = os.dup(2)
        os.dup2(log, 2)
        try:
            for name in modules:
                if name not in sys.modules:
                    try:
                        importlib.import_module(name)
                    except Exception:  # noqa: BLE001 - as the docstring says
                        traceback.print_exc()
        finally:
            os.dup2(saved, 2)
            os.close(saved)

    def _start(self, connection: socket.socket, descriptors: tuple[int, int]) -> None:
        assert threading.active_count() == 1, "a thread in the fork server would be lost in its children"
        gc.collect()
        gc.freeze()
        parent = os.getpid()
        try:
            pid = _fork()
        except OSError as error:
            self._refuse(connection, error)
            return
        if pid == 0:
            self._child(connection, descriptors, parent)
        self._jobs[pid] = connection
        self._tell(pid, t="pid", pid=pid, inherited_anon=procfs.memory(parent).anon)

    def _refuse(self, connection: socket.socket, error: OSError) -> None:
        """No child could be made: that job fails and the server goes on."""
        reason = (error.strerror or str(error)).lower()
        failed = StageFailed("E-STAGE-START", f"no process can be started: {reason}")
        with connection, contextlib.suppress(OSError):
            for message in ({"t": "error", **failed.to_dict()}, {"t": "exit", "status": 1, "cpu": 0.0, "maxrss": 0}):
                connection.sendall(f"{json.dumps(message)}\n".encode())

    def _child(self, connection: socket.socket, descriptors: tuple[int, int], parent: int) -> NoReturn:
        log, _lock = descriptors
        status = 1
        try:
            die_with_parent(parent)
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._control.close()
            for other in self._jobs.values():
                other.close()
            os.dup2(log, 1)
            os.dup2(log, 2)
            run_job(read_job(connection), connection)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
        for pid in list(self._jobs):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                # Programs that the stage left running must not write after its end was reported. While the child
                # is not waited for, its number is not given to another process.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _pid, status, usage = os.wait4(pid, 0)
                cpu = usage.ru_utime + usage.ru_stime
                self._tell(pid, t="exit", status=os.waitstatus_to_exitcode(status), cpu=cpu, maxrss=usage.ru_maxrss)
                self._jobs.pop(pid).close()
        return True

    def _tell(self, child: int, /, **message: object) -> None:
        with contextlib.suppress(OSError):
            # The line feed before it ends what a killed child may have begun to say.
            self._jobs[child].sendall(f"\n{json.dumps(message)}\n".encode())


def main() -> None:
    """Serve the control socket whose descriptor is the first argument; the second is the builder's pid."""
    control = socket.socket(fileno=int(sys.argv[1]))
    Server(control).run()


if __name__ == "__main__":
    main()
