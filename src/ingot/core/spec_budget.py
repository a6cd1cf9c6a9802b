"""The memory that a spec says its exports run in: read and checked. What follows from it: ``ingot.core.budgets``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ingot.core.complaints import describe, unknown_fields
from ingot.core.names import suggestion
from ingot.core.problems import Problems
from ingot.core.quantities import size_of
from ingot.core.scalars import shorten
from ingot.core.yaml_reader import Path

FIELDS = ("memory", "targets")
#: How a size is written, for editors.
SIZE_PATTERN = r"^\d{1,15}(\.\d{1,15})? ?([kKmMgGtT][iI]?)?[bB]$"
_HINT = "for example 64GB, 512 MB or 16GiB"


def read_budget(value: object, targets: Collection[str], problems: Problems) -> dict[str, Any]:
    """The budget as plain JSON, sizes in bytes; what is wrong with it becomes problems."""
    path = ("budget",)
    if not isinstance(value, dict):
        problems.add(path, "E-SPEC-TYPE", f"must be a mapping such as {{memory: 64GB}}, not {describe(value)}")
        return {}
    unknown_fields(value, path, FIELDS, problems)
    if not any(name in value for name in FIELDS):
        problems.add(path, "E-SPEC-MISSING", "needs a memory: memory or targets")
    found: dict[str, Any] = {}
    if "memory" in value:
        found["memory"] = _size(value["memory"], (*path, "memory"), problems)
    if "targets" in value:
        found["targets"] = _targets(value["targets"], targets, problems)
    return found


def _targets(value: object, targets: Collection[str], problems: Problems) -> dict[str, int]:
    path = ("budget", "targets")
    if not isinstance(value, dict):
        problems.add(path, "E-SPEC-TYPE", f"must be a mapping of targets to memory, not {describe(value)}")
        return {}
    for name in value:
        if name not in targets:
            what = f"there is no target {shorten(name)!r}"
            problems.add((*path, name), "E-SPEC-VALUE", what, suggestion(name, targets), key=True)
    return {name: _size(size, (*path, name), problems) for name, size in value.items()}


def _size(value: object, path: Path, problems: Problems) -> int:
    size = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str):
        size = size_of(value)
    if size is None:
        problems.add(path, "E-SPEC-TYPE", f"must be a size, not {describe(value)}", _HINT)
    elif size < 1:
        problems.add(path, "E-SPEC-VALUE", f"must be at least 1 byte, not {size}", _HINT)
    return size or 0
