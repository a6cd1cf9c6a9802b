"""Kill a program at a chosen system call of its main thread, by strace's fault injection."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from projectkit import DOIT, Sandbox

#: What touches a disk. A name that the machine's kernel does not have is passed over.
CALLS = (
    *("?mkdir", "?mkdirat", "openat", "write", "?pwrite64", "fsync", "?rename", "?renameat", "?renameat2"),
    *("?unlink", "unlinkat", "?rmdir", "?newfstatat", "?chmod", "fchmod", "?symlink", "?symlinkat", "close"),
)


@dataclass(frozen=True)
class Point:
    """The ``number``-th call of a system call."""

    call: str
    number: int


def require_strace(folder: Path) -> None:
    """Skip the test where strace is missing or may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace on PATH")
    done = subprocess.run(
        ["strace", "-o", str(folder / "probe"), "-e", "inject=openat:signal=SIGKILL:when=9999", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()[:200]}")


def points(sandbox: Sandbox, trace: Path, about: str = "", arguments: Sequence[str] = ()) -> list[Point]:
    """Every call of a whole ``doit ARGUMENTS``, from the first that touches the project's ``cache/`` on.

    With ``about`` only those in which that text stands.
    """
    done = _strace(sandbox, trace, [f"trace={','.join(CALLS)}"], arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: Counter[str] = Counter()
    found: list[Point] = []
    begun = False
    for line in trace.read_text().splitlines():
        match = re.match(r"(\w+)\(", line)
        if match:
            seen[match[1]] += 1
            begun |= "project/cache" in line
            found += [Point(match[1], seen[match[1]])] if begun and about in line else []
    return found


def killed_at(sandbox: Sandbox, point: Point, trace: Path, arguments: Sequence[str] = ()) -> tuple[bool, str]:
    """Run ``doit ARGUMENTS`` until that call; whether it was killed, and what it had printed."""
    rules = [f"trace={point.call}", f"inject={point.call}:signal=SIGKILL:when={point.number}"]
    done = _strace(sandbox, trace, rules, arguments)
    return done.returncode != 0, done.stdout


def _strace(
    sandbox: Sandbox, trace: Path, what: Sequence[str], arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    # Without -f: what is counted and killed is the builder, not its stages.
    command = ["strace", "-o", str(trace), *(word for rule in what for word in ("-e", rule)), DOIT, *arguments]
    return subprocess.run(
        command,
        cwd=sandbox.root,
        env=sandbox.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
