"""``doit`` from a process that has imported it before: for each command it forks a child, which then is ``doit``.

What a fresh interpreter would do again (start, and import the same modules) is left out, and nothing else: the child
has the folder, the environment, the streams and the exit code of a process of its own. ``Warm`` is the client;
``python warmdoit.py DESCRIPTOR`` serves it until its end of the socket is closed.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

#: Variables that Python itself reads at its start: with others than the server's, only a fresh interpreter will do.
_OF_PYTHON = ("PYTHON", "LANG", "LC_", "TZ", "LD_", "MALLOC_")
#: Some systems carry no longer message.
_MOST = 60_000


class Warm:
    """The client: one server, from the first command until ``close``; for use from several threads."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._environment: dict[str, str] = {}
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def _control(self) -> socket.socket:
        with self._starting:
            if self._server is None:
                self._environment = _of_python(os.environ)
                self._server = _started()
            return self._server[1]

    def run(
        self, command: list[str], folder: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str] | None:
        """What ``subprocess.run`` gives for ``command``; None when that has to be asked."""
        request, control = json.dumps([command, str(folder), dict(environment)]).encode(), self._control()
        if _of_python(environment) != self._environment or len(request) > _MOST:
            return None
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            with theirs:
                socket.send_fds(control, [request], [theirs.fileno(), out.fileno(), error.fileno()])
            ours.settimeout(timeout)
            with ours.makefile("rb") as told:
                pid, code = _number(told.readline()), 0
                try:
                    code = _number(told.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(command, timeout) from None
            printed = [_text(file) for file in (out, error)]
        return subprocess.CompletedProcess(command, code, *printed)

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            process, control = self._server
            control.close()
            process.wait(30)
            self._server = None


def _started() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", __file__, str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/")
    return process, ours


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_OF_PYTHON)}


def _number(line: bytes) -> int:
    assert line.endswith(b"\n"), "the server of doit is gone"
    return int(line)


def _text(file: Any) -> str:
    file.seek(0)
    # As ``text=True`` reads it.
    return str(file.read().decode()).replace("\r\n", "\n")


# --- the server ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve; a child comes out of ``_served`` with its command and goes on as ``doit``."""
    signal.signal(signal.SIGCHLD, lambda *_: None)
    command = _served(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        from doit.doit_cmd import DoitMain

        sys.argv[:] = command
        _end(DoitMain().run(command[1:]))


def _served(control: socket.socket) -> list[str] | None:
    _prepare()
    running: dict[int, int] = {}
    wake, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            wake.recv(4096)
            _tell_of_ended(running)
        if control not in ready:
            continue
        data, ancillary, _flags, _address = control.recvmsg(1 << 20, socket.CMSG_LEN(4 * 3))
        if not data:
            return None
        descriptors = array.array("i")
        for _level, _kind, payload in ancillary:
            descriptors.frombytes(payload)
        told, out, error = descriptors
        child = os.fork()
        if not child:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for mine in (control, wake, wakes):
                mine.close()
            for descriptor in (told, *running.values()):
                os.close(descriptor)
            return _become(json.loads(data), out, error)
        running[child] = told
        _tell(told, child)
        os.close(out)
        os.close(error)


def _tell_of_ended(running: dict[int, int]) -> None:
    """Say how each child ended that has ended."""
    for child in list(running):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            told = running.pop(child)
            _tell(told, os.waitstatus_to_exitcode(status))
            os.close(told)


def _tell(told: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(told, b"%d\n" % number)


def _become(request: Any, out: int, error: int) -> list[str]:
    """In a child of the server: take the place, the environment and the streams of a command, and give it back."""
    command, folder, environment = request
    os.dup2(out, 1)
    os.dup2(error, 2)
    os.close(out)
    os.close(error)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(command)


def _end(code: int | None) -> NoReturn:
    """What Python does at its end but for taking down every module, which would copy all that the fork shares."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _prepare() -> None:
    """Import what ``doit`` imports here, and find the commands that are installed."""
    import doit.plugin

    import ingot.commands
    import ingot.core
    import ingot.stages

    for package in (ingot.core, ingot.commands, ingot.stages):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("ingot.doit_tasks")
    found = functools.cache(importlib.metadata.entry_points)
    for kind in ("BACKEND", "COMMAND", "LOADER", "REPORTER"):
        found(group=f"doit.{kind}")
    doit.plugin.entry_points_impl = lambda: found
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
