"""What an audit found: problems and notes, each with a stable code and its place."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Problems of the store; all others are the registry's.
STORE_CODES = frozenset({"artifact_damaged", "results_differ"})


@dataclass(frozen=True)
class Finding:
    """One problem or note: a stable code, the place, and what is wrong there."""

    code: str
    where: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """As ``--json`` shows it."""
        return {"code": self.code, "where": self.where, "detail": self.detail}


@dataclass
class Audit:
    """What was checked and what was found."""

    entries: int = 0
    objects: int = 0
    absent: int = 0
    bytes: int = 0
    metrics: int = 0
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    #: The places of absent artifacts that were taken away on purpose.
    evicted: set[str] = field(default_factory=set)

    @property
    def exit_code(self) -> int:
        """0, 4 for problems of the store only, 5 for any of the registry."""
        if not self.problems:
            return 0
        return 4 if all(problem.code in STORE_CODES for problem in self.problems) else 5
