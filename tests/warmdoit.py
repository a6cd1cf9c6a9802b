"""``doit`` from a process that has imported it before: for each command it forks a child, which then is ``doit``.

What a fresh interpreter would do again (start, and import the same modules) is left out, and nothing else: the child
has the folder, the environment, the streams and the exit code of a process of its own. ``Warm`` is the client;
``python warmdoit.py DESCRIPTOR`` serves it until its end of the socket is closed.
"""

from __future__ import annotations

import array
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    command = _served(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        from doit.doit_cmd import DoitMain

        sys.argv[:] = command
        sys.exit(DoitMain().run(command[1:]))


def _served(control: socket.socket) -> list[str] | None:
    _prepare()
    while True:
        data, ancillary, _flags, _address = control.recvmsg(1 << 20, socket.CMSG_LEN(4 * 3))
        # Those who waited for the commands before have ended.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not data:
            return None
        descriptors = array.array("i")
        for _level, _kind, payload in ancillary:
            descriptors.frombytes(payload)
        if not os.fork():
            control.close()
            return _become(json.loads(data), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: Any, told: int, out: int, error: int) -> list[str]:
    """In a child of the server: wait for one's own child, and tell of it; that child is the command."""
    command, folder, environment = request
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):
            os.write(told, b"%d\n" % child)
        _pid, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(error, 2)
    for descriptor in (told, out, error):
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return list(command)


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
