"""Names: what a spec, a target, a role and a label may be called, and the nearest valid name to a wrong one."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

_TARGET = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SPEC = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,40}")
_METRIC = re.compile(r"[a-z][a-z0-9_]*")

#: What Windows takes for a device, with any suffix: a project with such a name could not be cloned there.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

#: Sub-commands of doit and of ingot: a spec of that name could not be named on the command line.
COMMANDS = frozenset(
    (
        *("help", "list", "run", "clean", "forget", "ignore", "auto", "dumpdb", "info", "strace", "tabcompletion"),
        *("reset-dep", "plan", "why", "show", "history", "diff", "audit", "reproduce", "promote", "rollback", "accept"),
        *("gc", "materialize", "report", "schema", "new", "doctor", "registry", "bisect", "query", "unpack", "chat"),
    )
)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The most similar of ``choices``, or None when none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name[:80].lower(), by_lower, 1, 0.6)
    return by_lower[found[0]] if found else None


def suggestion(name: str, choices: Iterable[str]) -> str | None:
    """A hint for a wrong name: the nearest valid one, else all of them when they are few."""
    valid = sorted(choices)
    near = nearest(name, valid)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"one of {', '.join(valid)}" if 0 < len(valid) <= 24 else None


def target_name_problem(name: str) -> str | None:
    """What is wrong with the name of a target, or None."""
    if is_device(name):
        return f"{name!r} is the name of a device on Windows"
    if _TARGET.fullmatch(name):
        return None
    return "a name of a target starts with a lower-case letter or digit, then holds a-z, 0-9, '_' and '-' (at most 64)"


def spec_name_problem(name: str) -> str | None:
    """What is wrong with the name of a spec, or None."""
    if name in COMMANDS:
        return f"{name!r} is a command of doit"
    if is_device(name):
        return f"{name!r} is the name of a device on Windows"
    if _SPEC.fullmatch(name) and not name.endswith("."):
        return None
    return (
        "a name of a spec starts with a lower-case letter or digit, then holds a-z, 0-9, '.', '_' and '-' (at most 64; "
        "no '.' at its end)"
    )


def is_device(name: str) -> bool:
    """Whether Windows takes a name for a device."""
    return _DEVICE.fullmatch(name) is not None


def twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that one file system or another takes for one: they differ by case, or by Unicode form, alone."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            return first, name
    return None


def is_role(name: str) -> bool:
    """Whether a role may be called so."""
    return _ROLE.fullmatch(name) is not None


def is_label(text: str) -> bool:
    """Whether a matrix value may stand in a task name as it is."""
    return _LABEL.fullmatch(text) is not None


def is_metric(name: str) -> bool:
    """Whether a metric may be called so."""
    return _METRIC.fullmatch(name) is not None


def stands_for(name: str, metric: str) -> bool:
    """Whether a metric is one of those that a name means: capitals in it stand for several names."""
    return re.fullmatch(re.sub("[A-Z]+", "[a-z0-9_]+", re.escape(name)), metric) is not None
