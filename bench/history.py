"""What the benchmarks of a long history share: their options, and entries signed like those of a build."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Mapping
from typing import Any

#: Entries of one commit: what is measured is reading, so the log is written in few commits.
_BATCH = 500
#: What a presented receipt has beside its own fields.
_SHOWN = ("origin", "index", "built_at", "present", "built_as")


def options(description: str | None) -> argparse.Namespace:
    """How long the history is, of how many targets, and how often each command is timed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--targets", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def like(presented: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt of its own like a presented one."""
    return {name: copy.deepcopy(value) for name, value in presented.items() if name not in _SHOWN}


def length(registry: Any) -> int:
    """The entries of a registry."""
    return int(sum(head.size for head in registry.heads().values()))


def sign(registry: Any, receipts: Iterable[Mapping[str, Any]]) -> None:
    """Append receipts to a registry, all built before the first is signed."""
    from ingot.core.statement import build_statement

    statements = [build_statement(receipt) for receipt in receipts]
    for start in range(0, len(statements), _BATCH):
        registry.append(statements[start : start + _BATCH])
