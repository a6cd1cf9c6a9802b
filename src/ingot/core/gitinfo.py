"""The git commit of a project and whether its tree is clean, as a receipt records it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

#: What ingot itself writes is no change of the project.
_OURS = (":(exclude)registry", ":(exclude)cache", ":(exclude)ingot.lock")


@cache
def git_state(root: Path) -> dict[str, str | bool | None]:
    """``{"commit": hex or None, "clean": bool or None}``; None where there is no git or no commit."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "clean": None}
    changes = _git(root, "status", "--porcelain", "--", ".", *_OURS)
    return {"commit": commit.strip(), "clean": None if changes is None else not changes.strip()}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        # Without optional locks: ``git status`` must not make the user's own ``git commit`` fail.
        command = ("git", "--no-optional-locks", *arguments)
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
