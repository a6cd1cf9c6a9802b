"""What a build may take over from earlier results, as plain data in its job.

Offered are results of the same kind, revision and tools whose object is here, the newest first, of whatever spec. Which
of their parts are the same is the kind's to know; it compares what it takes. Nothing is offered to a build whose key
has a digest already (it is forced, forgotten or evicted): that shows what comes out again, and must not read the
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from ingot.core.digest import read_json
from ingot.core.stage import load_kind
from ingot.errors import RegistryDamaged

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.job import Flow, Job
    from ingot.core.plan import Planned
    from ingot.core.project import Project

#: How many earlier results are offered: each costs the reading of its evidence.
MOST = 8


def offer(project: Project, group: Sequence[Planned], job: Job) -> None:
    """Add to the job of these targets what they may take over; nothing for kinds that take over nothing."""
    first = group[0]
    if not load_kind(first.node.kind).reuses or any(item.receipt is not None for item in group):
        return
    assert first.parts is not None
    job.data["earlier"] = list(islice(_earlier(project, first.parts), MOST))
    _tell(project, first.node, job.flows, job.data)


def _earlier(project: Project, parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    wanted = {name: parts.get(name) for name in ("kind", "revision", "tools")}
    seen: set[str] = set()
    # Copied at once: other threads record what they build.
    places = list(project.index.latest.values())
    for place in sorted(places, key=lambda place: str(place["time"]), reverse=True):
        for receipt in reversed(project.index.builds(str(place["key"]))):
            digest, own = str(receipt["digest"]), receipt["key_parts"]
            # What was accepted was built under another key than it bears.
            if digest in seen or "accepted" in receipt or {name: own.get(name) for name in wanted} != wanted:
                continue
            folder = project.store.object_path(digest)
            blocks = _evidence(project, receipt, "blocks") if folder.is_dir() else {}
            if blocks:
                seen.add(digest)
                tensors = _evidence(project, receipt, "tensors")
                yield {"folder": str(folder), "tensors": tensors, "blocks": blocks}


def _tell(project: Project, node: Node, flows: Mapping[str, Flow], job: dict[str, Any]) -> None:
    """Add the digests of the tensors of what is streamed, where it is a folder, to a job and to those in it."""
    for role in node.streams:
        if role in flows:
            _tell(project, flows[role].node, flows[role].below, job["virtual"][role])
        elif node.inputs.get(role):
            receipt = project.current[f"{node.spec}:{node.inputs[role][0]}"]
            job.setdefault("tensors", {})[role] = _evidence(project, receipt, "tensors")


def _evidence(project: Project, receipt: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Evidence of a receipt, compared with its digest; empty where there is none, or what is there is another."""
    digest, found = receipt.get(f"{name}_evidence"), None
    # Another writer's evidence may be of any form.
    with suppress(RegistryDamaged, ValueError, RecursionError):
        found = None if digest is None else read_json(project.registry.read_evidence(str(digest)))
    return dict(found) if isinstance(found, Mapping) else {}
