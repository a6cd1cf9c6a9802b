"""Building a target again to see whether the same bytes come out, and the entry that says so.

A ``reproduced`` entry puts nothing in force and names no artifact that can be used: it keeps the digest that came out
under the key, whether that is the one on record, and where not, how far apart the two are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.statement import decision_statement
from ingot.errors import StoreDamaged

if TYPE_CHECKING:
    from ingot.core.build import Builder
    from ingot.core.plan import Planned
    from ingot.core.project import Project

Json = Mapping[str, Any]
#: How far two files of one name are apart, as plain JSON.
Measure = Callable[[Path, Path], Json]
#: Files whose difference is told in the entry; the artifact's digest speaks for all.
_TOLD = 8


@dataclass(frozen=True)
class Reproduction:
    """What came out: the digest on record, the one found, and of each file that differs how far it is apart."""

    target: str
    kind: str
    promised: str
    key: str
    digest: str
    found: str
    wall_s: float
    environment: Json
    apart: Mapping[str, Json] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether the same bytes came out."""
        return self.digest == self.found

    @property
    def broken(self) -> bool:
        """Whether other bytes came out although the kind promises the same ones."""
        return not self.agrees and self.promised != "device_dependent"

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        names = ("target", "kind", "promised", "key", "digest", "found", "agrees", "wall_s", "apart")
        return {name: getattr(self, name) for name in names}

    def statement(self) -> dict[str, Any]:
        """The entry."""
        told = dict(list(self.apart.items())[:_TOLD])
        fields = {"target": self.target, "digest": self.digest, "key": self.key, "found": self.found}
        rest = {"agrees": self.agrees, "files_apart": len(self.apart), "apart": told, "wall_s": self.wall_s}
        return decision_statement("reproduced", {**fields, **rest, "environment": dict(self.environment)})


@dataclass(frozen=True)
class Reproducer:
    """Builds targets again and records what came out. ``measure`` says how far apart two files are."""

    project: Project
    builder: Builder
    measure: Measure

    def __call__(self, planned: Planned, look: Callable[[Path], None] = lambda _folder: None) -> Reproduction:
        """Build one target, whose result is in force, again; ``look`` sees what came out before it is dropped."""
        receipt = planned.receipt
        assert receipt is not None
        with self.builder.beside(planned) as (again, folder):
            apart = {} if again["digest"] == receipt["digest"] else self._apart(receipt, again["files"], folder)
            look(folder)
        found = Reproduction(
            target=planned.node.id,
            kind=planned.node.kind,
            promised=planned.node.reproducibility,
            key=str(planned.key),
            digest=str(receipt["digest"]),
            found=str(again["digest"]),
            wall_s=float(again["timings"]["wall_s"]),
            environment=again["environment"],
            apart=apart,
        )
        self.project.record(found.statement())
        return found

    def _apart(self, receipt: Json, files: Sequence[Json], folder: Path) -> dict[str, Json]:
        """Each file that differs; one that only one side has, or that is not here to compare, is named as such."""
        before, after = ({str(file["path"]): file for file in listed} for listed in (receipt["files"], files))
        try:
            known: Path | None = self.project.store.require(str(receipt["digest"]), receipt["files"])
        except StoreDamaged:
            known = None
        found: dict[str, Json] = {}
        for path in sorted(before.keys() | after.keys()):
            old, new = before.get(path), after.get(path)
            if old is None or new is None:
                found[path] = {"what": "missing" if new is None else "added"}
            elif old["sha256"] != new["sha256"]:
                found[path] = self.measure(known / path, folder / path) if known else {"what": "not here to compare"}
        return found
