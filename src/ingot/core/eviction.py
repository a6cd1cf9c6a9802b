"""Evicted results: their bytes were taken away to make room (``gc``), and what is known of them stays. Pure.

They keep their digests, so nothing that was built from them becomes stale. Their bytes are built again where something
that is to be built reads them, and by ``doit materialize``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ingot.core import reasons
from ingot.core.graph import input_ids

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.reasons import Reason


def told(planned: dict[str, Planned], asked: Collection[str]) -> dict[str, Planned]:
    """The same plan, in which evicted results are stale that are ``asked`` for, or read by what is to be built.

    ``planned`` holds inputs before consumers.
    """
    readers: dict[str, list[str]] = {}
    for name, item in reversed(list(planned.items())):
        wanted = readers.get(name)
        comes_back = item.state == "evicted" and bool(wanted or name in asked)
        if comes_back:
            why = reasons.asked_for() if name in asked else reasons.evicted(wanted or ())
            planned[name] = replace(item, state="stale", reasons=(why,))
        # What flows through a virtual target is read where that is read.
        flows = item.state == "virtual" and bool(wanted)
        reads = comes_back or flows or item.state in ("stale", "waiting", "building")
        for source in dict.fromkeys(input_ids(item.node)) if reads else ():
            readers.setdefault(source, []).insert(0, item.node.name)
    return planned


def wanted(planned: Mapping[str, Planned]) -> dict[str, tuple[Reason, ...]]:
    """The evicted results, by id, whose bytes a run needs by its plan, and for what."""
    return {name: item.reasons for name, item in planned.items() if any(it.code == "evicted" for it in item.reasons)}
