"""What a stage is given, as plain data: read and verified before the stage begins, and looked at again after it.

A virtual input that flows is a job of its own inside the job of what streams it, to any depth: nobody runs it alone.
Its inputs are verified as those of the target itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core import disk
from ingot.core.key import key_of
from ingot.core.store import Later, none_later
from ingot.core.virtual import flows_into, inputs_among
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned
    from ingot.core.project import Project
    from ingot.core.staging import Staging

Receipt = Mapping[str, Any]
#: The folder of a virtual target's scratch copy, verified; KeyError where there is none.
CopyOf = Callable[[str], Path]


@dataclass(frozen=True)
class Flow:
    """A virtual input of a job, as it was planned, with the virtual inputs that flow into it."""

    planned: Planned
    below: Mapping[str, Flow] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        """The virtual target."""
        return self.planned.node

    def deep(self) -> Iterator[Flow]:
        """What flows into it, the first in the row first, and itself at last."""
        for flow in self.below.values():
            yield from flow.deep()
        yield self


@dataclass(frozen=True)
class Job:
    """A job as the executor takes it, and what flows into it by role."""

    data: dict[str, Any]
    flows: Mapping[str, Flow]


class Jobs:
    """Makes the jobs of one project."""

    def __init__(self, project: Project, copy_of: CopyOf) -> None:
        self._project = project
        self._copy_of = copy_of

    def make(self, group: Sequence[Planned], staging: Staging) -> Job:
        """The job that builds these targets in one pass (mostly it is one); the first stands for all."""
        first, node = group[0], group[0].node
        sources = self._snapshot(first, staging)
        flows = self._flows(node)
        data = {
            **self._stage(node, flows, staging.streamed),
            "scratch": str(staging.scratch),
            "sources": [str(path) for path in sources],
            "out": str(staging.out),
            "network": node.network,
            "preload": _modules(node, flows),
        }
        if node.device is not None:
            data["device"] = node.device
        if group[1:]:
            data["others"] = [self._other(item, staging.part(number)) for number, item in enumerate(group[1:], 1)]
        return Job(data, flows)

    def _other(self, item: Planned, part: Staging) -> dict[str, Any]:
        disk.make_dirs(part.out)
        return {"params": dict(item.node.params), "out": str(part.out)}

    def _flows(self, node: Node) -> dict[str, Flow]:
        return {role: self._flow(name) for role, name in self._virtual(node) if flows_into(node, role)}

    def _flow(self, name: str) -> Flow:
        planned = self._project.virtual[name]
        return Flow(planned, self._flows(planned.node))

    def _virtual(self, node: Node) -> Iterator[tuple[str, str]]:
        """(role, id) of the inputs that are virtual and not here."""
        return inputs_among(node, self._project.virtual)

    def to_copy(self, node: Node) -> list[str]:
        """The virtual targets that must be written for a while before this one can be built, by id."""
        found = [name for role, name in self._virtual(node) if not flows_into(node, role)]
        for flow in self._flows(node).values():
            found += self.to_copy(flow.node)
        return list(dict.fromkeys(found))

    def _stage(self, node: Node, flows: Mapping[str, Flow], folder: Path) -> dict[str, Any]:
        """The stage of a job and what it is given; ``folder`` has room for the scratch files of what flows."""
        inputs: dict[str, list[str]] = {}
        digests: dict[str, list[str]] = {}
        files: dict[str, list[Any]] = {}
        for role, names in node.inputs.items():
            if role in flows:
                known = self._project.current.get(flows[role].node.id)
                digests[role] = [] if known is None else [str(known["digest"])]
                continue
            receipts = [self._project.current[f"{node.spec}:{name}"] for name in names]
            inputs[role] = [str(self._folder(f"{node.spec}:{name}", later_of(node, role))) for name in names]
            digests[role] = [str(receipt["digest"]) for receipt in receipts]
            files[role] = [receipt["files"] for receipt in receipts]
        stage: dict[str, Any] = {"kind": node.kind, "params": dict(node.params), "seed": node.seed}
        stage |= {"threads": self._project.threads, "inputs": inputs, "digests": digests, "files": files}
        virtual = {role: self._below(flow, folder / role) for role, flow in flows.items()}
        return stage | ({"virtual": virtual} if virtual else {})

    def _below(self, flow: Flow, folder: Path) -> dict[str, Any]:
        scratch = folder / "scratch"
        disk.make_dirs(scratch)
        return self._stage(flow.node, flow.below, folder / "inputs") | {"scratch": str(scratch)}

    def _folder(self, name: str, later: Later) -> Path:
        """The folder of an input, every byte of it read now but for what the stage verifies in its own read."""
        if name in self._project.virtual:
            return self._copy_of(name)
        receipt = self._project.current[name]
        return self._project.store.require(str(receipt["digest"]), receipt["files"], later=later)

    def check_unchanged(self, node: Node, flows: Mapping[str, Flow]) -> None:
        """Inputs were read before the stage began; what has another stat since is read again (E-OBJECT-DAMAGED).

        What the stage streamed was compared in the very read that it used.
        """
        for role, names in node.inputs.items():
            for name in [] if role in flows else [f"{node.spec}:{name}" for name in names]:
                if name in self._project.virtual:
                    self._copy_of(name)
                else:
                    receipt = self._project.current[name]
                    self._project.store.require(
                        str(receipt["digest"]), receipt["files"], reread=False, later=later_of(node, role)
                    )
        for flow in flows.values():
            self.check_unchanged(flow.node, flow.below)

    def verify_streamed(self, node: Node, flows: Mapping[str, Flow]) -> None:
        """After a failure: read what the stage was to verify itself; what is damaged is to blame (E-OBJECT-DAMAGED)."""
        for role, names in node.inputs.items():
            for name in names if role not in flows and flows_into(node, role) else []:
                if f"{node.spec}:{name}" not in self._project.virtual:
                    receipt = self._project.current[f"{node.spec}:{name}"]
                    self._project.store.require(str(receipt["digest"]), receipt["files"])
        for flow in flows.values():
            self.verify_streamed(flow.node, flow.below)

    def _snapshot(self, planned: Planned, staging: Staging) -> list[Path]:
        """Copy the sources and make sure that what was copied is what the key says (E-CHANGED)."""
        node, project = planned.node, self._project
        if not node.sources:
            return []
        paths, digests = [], []
        for index, (_pointer, source, base) in enumerate(node.sources):
            path, digest = project.sources.snapshot({**source, "base": base}, staging.sources / str(index))
            paths.append(path)
            digests.append(digest)
        parts = project.planner.parts(node, project.digests_of_inputs(node), tuple(digests))
        if key_of(parts) != planned.key:
            raise RefusedInput(
                "E-CHANGED",
                f"a source of {node.id} changed while it was being read",
                hint="run doit again",
            )
        return paths


def later_of(node: Node, role: str) -> Later:
    """Which files of an input in this role the stage verifies in the read that it uses."""
    return _is_weights if flows_into(node, role) else none_later


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


def _modules(node: Node, flows: Mapping[str, Flow]) -> list[str]:
    """What the fork server imports before it forks."""
    nodes = [node, *(flow.node for top in flows.values() for flow in top.deep())]
    return list(dict.fromkeys(name for each in nodes for name in (f"ingot.stages.{each.kind}", *each.preload)))
