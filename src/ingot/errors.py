"""Every failure that ingot explains to a person: what went wrong, the facts, the hint.

The tree (exit codes are those of ingot's own commands; inside a build the same
fault makes the doit task fail and shows its code)::

    IngotError
    ├── UsageError        2   the command line asks for what does not exist
    ├── SpecError         2   one or more problems in a spec, all reported at once
    ├── MissingTool       2   a package or program is not installed (named with its install command)
    ├── RefusedInput      3   an input that ingot will not use (wrong digest, pickle, unknown format)
    ├── StageFailed       1   a stage ended without a result
    ├── GateFailed        1   a measurement is on the wrong side of its gate
    ├── StoreDamaged      4   bytes in the store are not what their name says
    ├── RegistryDamaged   5   the log, a signature or a pin does not verify
    ├── Busy              6   another process holds the lock
    ├── DiskFailed        7   the disk is full, read-only or failing
    ├── WillNotFit        7   what is to be built is predicted to need more disk or memory than there is
    └── UntrustedRemote   8   a remote gave something other than what was pinned
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class IngotError(Exception):
    """A failure with a stable code, one sentence, facts and a hint.

    ``code`` is stable and greppable (``E-SPACE``); ``what`` is one sentence without a
    full stop; ``facts`` are further lines; ``hint`` says what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, what: str, *, facts: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.facts = tuple(facts)
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}", *(f"  {fact}" for fact in self.facts)]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The error as plain data: how it crosses a process boundary."""
        return {
            "type": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "facts": list(self.facts),
            "hint": self.hint,
        }


class UsageError(IngotError):
    """The command line names a target, file or option that does not exist."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One problem in a spec file.

    ``line`` and ``column`` count from 1; ``field`` is the dotted path of the field
    (``targets.adapter.rank``), empty for the file as a whole.
    """

    file: str
    line: int
    column: int
    field: str
    code: str
    what: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        field = f" {self.field}:" if self.field else ""
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{where}: {self.code}:{field} {self.what}{hint}"


class SpecError(IngotError):
    """One or more problems in specs; all of them, in order of file and line."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column, p.code, p.what)))
        first = self.problems[0]
        super().__init__(first.code, first.what, hint=first.hint)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class MissingTool(IngotError):
    """A Python package or a program that a stage needs is not installed."""

    exit_code = 2


class RefusedInput(IngotError):
    """An input that ingot will not use: wrong digest, unsafe or unknown format."""

    exit_code = 3


class StageFailed(IngotError):
    """A stage ended without a result; ``log`` is the path of its kept output, if any."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        facts: Sequence[str] = (),
        hint: str | None = None,
        log: str | None = None,
    ) -> None:
        super().__init__(code, what, facts=facts, hint=hint)
        self.log = log


class GateFailed(IngotError):
    """A recorded measurement is on the wrong side of its gate."""


class StoreDamaged(IngotError):
    """Bytes in the store are not what their name says."""

    exit_code = 4


class RegistryDamaged(IngotError):
    """The log, its signature or a pin does not verify."""

    exit_code = 5


class Busy(IngotError):
    """Another process holds the lock for longer than we wait."""

    exit_code = 6


class DiskFailed(IngotError):
    """The disk is full, read-only or failing, or a file could not be opened."""

    exit_code = 7


class WillNotFit(IngotError):
    """What is to be built is predicted to need more disk (E-SPACE) or memory (E-MEMORY) than there is."""

    exit_code = 7


class UntrustedRemote(IngotError):
    """A remote gave something other than what was pinned."""

    exit_code = 8


_BY_NAME: dict[str, type[IngotError]] = {
    cls.__name__: cls
    for cls in (
        IngotError,
        UsageError,
        MissingTool,
        RefusedInput,
        StageFailed,
        GateFailed,
        StoreDamaged,
        RegistryDamaged,
        Busy,
        DiskFailed,
        WillNotFit,
        UntrustedRemote,
    )
}


def from_dict(data: dict[str, object]) -> IngotError:
    """Rebuild an error that ``to_dict`` made plain; unknown types become IngotError."""
    cls = _BY_NAME.get(str(data.get("type")), IngotError)
    facts = data.get("facts")
    hint = data.get("hint")
    return cls(
        str(data.get("code")),
        str(data.get("what")),
        facts=[str(fact) for fact in facts] if isinstance(facts, list) else (),
        hint=None if hint is None else str(hint),
    )
