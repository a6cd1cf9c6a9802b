"""The reason that a person gives for a decision: text that stays in an append-only log for ever."""

from __future__ import annotations

from pathlib import Path

from ingot.core.redact import environment_secrets, holds_secret
from ingot.core.scalars import shorten
from ingot.errors import UsageError

MAX_LENGTH = 500


def checked(text: str, root: Path) -> str:
    """The reason without spaces around it. UsageError: E-REASON, or E-SECRET-LITERAL, which does not echo the text.

    One line, not empty, at most ``MAX_LENGTH`` characters, without the path of the project or of the home folder.
    """
    reason = text.strip()
    if holds_secret(reason) or any(value in reason for value in environment_secrets()):
        what = "the reason holds what is, or looks like, a secret of yours"
        raise UsageError("E-SECRET-LITERAL", what, hint="the log is signed and cannot forget: leave the secret out")
    if not reason:
        raise UsageError("E-REASON", "the reason is empty", hint='say why, for those who read the log: --reason "…"')
    if len(reason) > MAX_LENGTH:
        raise UsageError("E-REASON", f"the reason has {len(reason):,} characters, more than {MAX_LENGTH}")
    if not reason.isprintable():
        raise UsageError("E-REASON", f"the reason is not one line of printable text: {shorten(reason)!r}")
    if any(str(folder) in reason for folder in (root, Path.home()) if folder != Path("/")):
        what = "the reason holds a path of this machine"
        raise UsageError("E-REASON", what, hint="write paths as they are in the project; the log is read elsewhere")
    return reason
