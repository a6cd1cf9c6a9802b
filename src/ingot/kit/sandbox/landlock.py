"""Files that a process may touch, bounded by Landlock (Linux 5.13): below some folders, and nothing else.

Imports the standard library alone, as ``syscalls``. Numbers are those of linux/landlock.h; the calls have the same
numbers on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _BENEATH = 1, 1
_EXECUTE, _WRITE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
#: Rights of the first version (bits 0 to 12), then what later ones added: REFER, TRUNCATE, IOCTL_DEV.
_FIRST = 13
_ADDED = {1: _FIRST, 2: _FIRST + 1, 3: _FIRST + 2, 4: _FIRST + 2, 5: _FIRST + 3}
_NEWEST = max(_ADDED)
_IOCTL = 1 << 15


def restrict(readable: Iterable[str], writable: Iterable[str], devices: Iterable[str] = ()) -> None:
    """From now on this process reads below ``readable``, does anything below ``writable`` and opens no other file.

    What does not exist is passed over. OSError where the system has no Landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = min(_checked(libc.syscall(_CREATE, None, 0, _VERSION)), _NEWEST)
    rights = (1 << _ADDED[version]) - 1
    # network (version 4) and scopes (version 6) are the filter's: no socket and no signal is left to bound
    described = struct.pack("=Q", rights)
    rules = _checked(libc.syscall(_CREATE, described, len(described), 0))
    read = _READ_FILE | _READ_FOLDER
    for allowed, paths in ((read, readable), (rights & ~_EXECUTE & ~_IOCTL, writable), (_READ_FILE | _WRITE, devices)):
        for path in paths:
            if os.path.exists(path):
                _allow(libc, rules, path, allowed)
    _checked(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    _checked(libc.syscall(_RESTRICT, rules, 0))
    os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, allowed: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            allowed &= _EXECUTE | _WRITE | _READ_FILE
        described = struct.pack("=Qi", allowed, folder)
        _checked(libc.syscall(_ADD, rules, _BENEATH, described, 0))
    finally:
        os.close(folder)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"no bounds for files (Landlock): {os.strerror(code)}")
    return result
