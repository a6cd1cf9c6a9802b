"""What a target needs and writes at the least, by arithmetic on its parameters: for chains that never ran.

A kind says it (``Stage.least_memory``, ``Stage.least_output``) of what its inputs have at the least: of a result that
is known its bytes and weights as recorded, of one that is to be built what its own kind says. What nobody knows is 0,
and a floor of 0 says nothing. A floor is below what a build takes, so it is no prediction: it is shown as "at least",
and refuses only what could not run at all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ingot.core import gpu, weights_facts
from ingot.core.graph import Node
from ingot.core.plan import Planned, input_ids
from ingot.core.store import Store

if TYPE_CHECKING:
    # Where nothing is to be built, no kind is loaded, and not what kinds are made of.
    from ingot.core.stage import Device, Least, Stage


@dataclass(frozen=True)
class Floor:
    """Bytes of memory at the least, of the machine or of a GPU (``device``), and bytes of the artifact."""

    memory_bytes: int
    bytes: int
    device: Device = "cpu"

    @property
    def host_bytes(self) -> int:
        """Bytes of the machine's memory."""
        return self.memory_bytes if self.device == "cpu" else 0

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {"memory_bytes": self.memory_bytes, "bytes": self.bytes, "device": self.device}


def floors(plan: Mapping[str, Planned], todo: Collection[str], store: Store) -> dict[str, Floor]:
    """The floors of the targets of ``todo`` of which arithmetic says anything; ``plan`` has inputs before consumers."""
    least: dict[str, Least] = {}
    found: dict[str, Floor] = {}
    known = {name: item.receipt for name, item in plan.items() if name not in todo and item.receipt is not None}
    asked = _asked(plan, todo, known)
    for name, item in plan.items():
        if name not in asked:
            continue
        if name in known:
            least[name] = _recorded(known[name], store)
            continue
        stage, inputs, device = _made(item), _inputs(item, least), device_of(item.node)
        least[name] = stage.least_output(inputs)
        if name in todo:
            floor = Floor(stage.least_memory(inputs, device), least[name].bytes, device)
            if floor.memory_bytes or floor.bytes:
                found[name] = floor
    return found


def _asked(plan: Mapping[str, Planned], todo: Collection[str], known: Collection[str]) -> set[str]:
    """The targets of ``todo`` and whatever they are made of, down to results that are ``known``."""
    asked = set(todo)
    for name, item in reversed(list(plan.items())):
        if name in asked and name not in known:
            asked.update(input_ids(item.node))
    return asked


def _made(item: Planned) -> Stage:
    from ingot.core.stage import load_kind

    return load_kind(item.node.kind).model_validate_json(json.dumps(item.node.params), strict=True)


def device_of(node: Node) -> Device:
    """Where a target would compute on this machine."""
    return "cuda" if node.device == "cuda" or (node.device == "auto" and _has_gpu()) else "cpu"


@cache
def _has_gpu() -> bool:
    return gpu.visible()


def _inputs(item: Planned, least: Mapping[str, Least]) -> dict[str, Least]:
    """What the inputs of each role have together."""
    from ingot.core.stage import Least

    node = item.node
    return {
        role: Least(sum(it.bytes for it in found), sum(it.weights for it in found))
        for role, names in node.inputs.items()
        if (found := [least[f"{node.spec}:{name}"] for name in names])
    }


def _recorded(receipt: Mapping[str, Any], store: Store) -> Least:
    """What is known of a result: the size of its files, and its weights as measured, else as their headers say."""
    from ingot.core.stage import Least

    size = sum(int(file["size"]) for file in receipt["files"])
    measured = receipt["metrics"].get("parameters")
    if measured is not None:
        return Least(size, int(measured["value"]))
    try:
        return Least(size, weights_facts.facts_of(store.object_path(str(receipt["digest"]))).elements)
    except (OSError, ValueError):
        # It is not here, or it is no model: then nothing is known of its weights.
        return Least(size)
