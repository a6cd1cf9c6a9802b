"""The inside of the sandbox: lock this process in, run one program, tell how it ended.

    python -I -S inside.py     (standard input: one JSON object; standard output: what became of it, JSON lines)

Imports the standard library and its two neighbours alone. Order matters: namespaces first (they need rights that the
rest takes away), then the work folder, the limits, the files, and the filter of system calls at last, which nothing
after it can undo. The program runs in a process that has no environment, no open file but its result, and no parent
that it could name.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import sys
import sysconfig
from collections.abc import Mapping
from typing import Any

_PACKAGES = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
sys.path.insert(0, _PACKAGES)
from ingot.kit.sandbox import landlock, syscalls  # noqa: E402

# the program finds the standard library alone
sys.path.remove(_PACKAGES)

_NEWUSER, _NEWNET, _NEWPID, _NEWIPC, _NEWNS = 0x10000000, 0x40000000, 0x20000000, 0x08000000, 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_FOLDER_BYTES = 16 << 20
_FILE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the order, become the sandboxed process, run the program."""
    _die_with(os.getppid())
    order = json.loads(sys.stdin.buffer.read())
    isolated = _isolate()
    child = os.fork()
    if child:
        # The first process of the new namespace is the program's; this one only waits for it.
        _pid, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    folder, writable = _folder(isolated=isolated)
    result = _only_result()
    try:
        _lock(order, folder if writable else None)
    except OSError as error:
        _say(result, {"unavailable": str(error)})
        os._exit(1)
    _say(
        result,
        {"ready": {"network": "namespace" if isolated else "sockets refused", "folder": _told(writable=writable)}},
    )
    _run(order, result)


def _told(*, writable: bool) -> str:
    return f"{_FOLDER_BYTES >> 20} MiB in memory" if writable else "read-only"


def _die_with(parent: int) -> None:
    """Nobody listens to what is left when the process that asked has ended."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _isolate() -> bool:
    """Namespaces of its own for the network, processes and mounts, where the system allows it."""
    uid, gid = os.getuid(), os.getgid()
    if _LIBC.unshare(_NEWUSER | _NEWNET | _NEWPID | _NEWIPC | _NEWNS):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:
        return False  # sockets are refused by the filter all the same
    return True


def _folder(*, isolated: bool) -> tuple[str, bool]:
    """The program's own empty folder, and whether it may write there: in memory of its own, or not at all.

    On a disk nothing would bound how many files a program leaves.
    """
    folder = os.getcwd()
    if not isolated or _LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        return folder, False
    flags, size = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={_FOLDER_BYTES},nr_inodes=4096".encode()
    if _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, size):
        return folder, False
    os.chdir(folder)
    return folder, True


def _only_result() -> int:
    """Close every open file but the one for the result, which gets a number of its own."""
    result = os.dup(1)
    high = 3 + int.from_bytes(os.urandom(1), "big")
    os.dup2(result, high)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.closerange(3, high)
    os.closerange(high + 1, 1 << 16)
    return high


def _lock(order: Mapping[str, Any], writable: str | None) -> None:
    seconds, memory = int(order["cpu_seconds"]), int(order["memory_bytes"])
    readable = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")}
    readable |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"}
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_NOFILE, 512),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(which, (value, value))
    os.environ.clear()
    landlock.restrict(sorted(filter(None, readable)), [writable] if writable else [], ["/dev/null", "/dev/urandom"])
    syscalls.install(platform.machine())


def _say(result: int, what: Mapping[str, Any]) -> None:
    os.write(result, json.dumps(what).encode() + b"\n")


def _run(order: Mapping[str, Any], result: int) -> None:
    """Run the program as a script. What it must be told at the end is in no name that it could look up."""
    passed, source = json.dumps({"passed": order["token"]}).encode() + b"\n", order["program"]
    del order
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        code = compile(source, "program", "exec")
        del source
        exec(code, namespace)  # noqa: S102 - this is what the sandbox is for
    except BaseException as error:  # noqa: BLE001 - whatever a program raises, SystemExit too, has not passed
        _say(result, {"error": type(error).__name__[:200]})
        os._exit(1)
    os.write(result, passed)
    os._exit(0)


if __name__ == "__main__":
    main()
