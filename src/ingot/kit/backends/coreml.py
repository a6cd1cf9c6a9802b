"""Core ML packages: what can be read from the files; running one needs a Mac and is not implemented."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ingot.core.stage import Metric

NOT_RUN = "Core ML packages are not run yet: only their size is measured (elsewhere than on a Mac they cannot run)"


@dataclass(frozen=True)
class Facts:
    """What a package says without being run."""

    precision: str
    metrics: dict[str, Metric]
    not_measured: dict[str, str] = field(default_factory=dict)


def facts(folder: Path) -> Facts:
    """Bytes of the weight files of all packages in a folder."""
    weights = sorted(path for path in folder.glob("*.mlpackage/Data/*/weights/*") if path.is_file())
    total = sum(path.stat().st_size for path in weights)
    return Facts("", {"bytes": Metric(total, "B", "size of the weight files")})
