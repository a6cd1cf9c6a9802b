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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core import gpu, weights_facts
from ingot.core.graph import Node, input_ids
from ingot.core.model_shape import model_shape
from ingot.core.plan import Planned
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


@dataclass(frozen=True)
class Arithmetic:
    """What targets of a plan have at the least, and the stages of those that say so themselves, by name."""

    least: Mapping[str, Least]
    stages: Mapping[str, Stage]

    def of_roles(self, item: Planned) -> dict[str, Least]:
        """What the inputs of each role that is filled have together."""
        node = item.node
        return {role: self.of_role(item, role) for role, names in node.inputs.items() if names}

    def of_role(self, item: Planned, role: str) -> Least:
        """What the inputs of a role have together; nothing where it is not filled."""
        from ingot.core.stage import Least

        node = item.node
        return Least.together(self.least[f"{node.spec}:{name}"] for name in node.inputs.get(role, ()))


def floors(plan: Mapping[str, Planned], todo: Collection[str], store: Store) -> dict[str, Floor]:
    """The floors of the targets of ``todo`` of which arithmetic says anything; ``plan`` has inputs before consumers."""
    known, found = arithmetic(plan, todo, todo, store), {}
    for name in (name for name in plan if name in todo):
        item, device = plan[name], device_of(plan[name].node)
        needed = known.stages[name].least_memory(known.of_roles(item), device)
        floor = Floor(needed, known.least[name].bytes, device)
        if floor.memory_bytes or floor.bytes:
            found[name] = floor
    return found


def arithmetic(plan: Mapping[str, Planned], todo: Collection[str], wanted: Collection[str], store: Store) -> Arithmetic:
    """What is known of ``wanted`` and of all that they are made of, down to results that are at hand.

    ``todo`` are the targets that are built: of these what their kinds say counts, of others what is recorded. Of a
    result whose bytes are not here the kind says what the record does not, which is its shape.
    """
    receipts = {name: item.receipt for name, item in plan.items() if name not in todo and item.receipt is not None}
    here = {name for name in receipts if plan[name].presence == "present"}
    asked = _asked(plan, wanted, here)
    least: dict[str, Least] = {}
    stages: dict[str, Stage] = {}
    known = Arithmetic(least, stages)
    for name in (name for name in plan if name in asked):
        receipt, said = receipts.get(name), None
        if name in wanted or name not in here:
            stages[name] = _made(plan[name])
            said = stages[name].least_output(known.of_roles(plan[name]))
        if receipt is not None:
            said = _recorded(receipt, store, said)
        assert said is not None, "what is not recorded is not here"
        least[name] = said
    return known


def _asked(plan: Mapping[str, Planned], wanted: Collection[str], here: Collection[str]) -> set[str]:
    """The targets ``wanted`` and whatever they are made of, down to results that are here."""
    asked = set(wanted)
    for name, item in reversed(list(plan.items())):
        if name in asked and (name in wanted or name not in here):
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


def _recorded(receipt: Mapping[str, Any], store: Store, said: Least | None) -> Least:
    """What is known of a result: the size of its files, its weights as measured, else as their headers say, and its
    shape as its config.json does, else as its kind ``said``.

    Of packed weights headers say too little, so the larger number of weights counts.
    """
    from ingot.core.stage import Least

    size = sum(int(file["size"]) for file in receipt["files"])
    folder, measured = store.object_path(str(receipt["digest"])), receipt["metrics"].get("parameters")
    config = any(file["path"] == "config.json" for file in receipt["files"])
    weights = _elements(folder) if measured is None else int(measured["value"])
    if (shape := model_shape(folder) if config else None) is None:
        return Least(size, weights) if said is None else Least(size, weights, said.cache, said.context)
    return Least(size, max(weights, shape.weights), shape.cache, shape.context)


def _elements(folder: Path) -> int:
    try:
        return weights_facts.facts_of(folder).elements
    except (OSError, ValueError):
        # It is not here, or it is no model: then nothing is known of its weights.
        return 0
