"""Receipts of one pass: of each target that it built, and of each virtual target that flowed into them.

Before the pass a receipt holds the key as planned. Afterwards every virtual input has a digest, so the key takes the
form that all keys have; ``streamed`` keeps what each such input was known by, from which the key as planned follows.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingot.core.digest import FileRecord, canonical_json, tree_digest
from ingot.core.executor import Outcome, Result
from ingot.core.gitinfo import git_state
from ingot.core.graph import Node, input_ids
from ingot.core.job import Flow, Job
from ingot.core.key import forms_of, is_by_key, key_of
from ingot.core.statement import MAX_LINE, build_statement
from ingot.errors import RefusedInput, StageFailed
from ingot.version import __version__

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.project import Project

Receipt = dict[str, Any]

#: What a receipt holds until it is recorded, and names as evidence from then on.
_MOVED = ("tensors", "blocks")
#: Stands for a digest that the pass will measure, while only the size of an entry matters.
_TO_COME = "0" * 64


def environment_of(job: Mapping[str, Any], network: str) -> dict[str, Any]:
    """On what a job runs, as its receipt says it."""
    return {
        "ingot": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": job["threads"],
        "network": network,
    }


def begun(project: Project, planned: Planned, job: Job) -> Receipt:
    """What is known of a target before the stage runs; what it measures comes later."""
    node = planned.node
    digests = {f"{node.spec}:{name}": _TO_COME for names in node.inputs.values() for name in names}
    digests |= {name: str(project.current[name]["digest"]) for name in digests if name in project.current}
    return {
        "type": "build",
        "target": node.id,
        "spec": node.spec,
        "spec_digest": project.spec_digest(node.spec),
        "kind": node.kind,
        "revision": node.revision,
        "reproducibility": node.reproducibility,
        "key": planned.key,
        "key_parts": planned.parts,
        "inputs": inputs_of(node, digests),
        "metrics": {},
        "environment": environment_of(job.data, "not isolated"),
        "timings": {"started": "", "finished": ""},
        "git": git_state(project.root),
    }


def inputs_of(node: Node, digests: Mapping[str, str]) -> dict[str, Any]:
    """A target's inputs as an entry holds them; ``digests`` are theirs by id."""
    found: dict[str, Any] = {}
    for role, names in node.inputs.items():
        listed = [{"target": f"{node.spec}:{name}", "digest": digests[f"{node.spec}:{name}"]} for name in names]
        if listed:
            found[role] = listed[0] if role in node.single_roles else listed
    return found


def with_digests(
    project: Project, planned: Planned, flows: Mapping[str, Flow], flowed: Mapping[str, Mapping[str, Any]]
) -> Receipt:
    """The fields of a receipt that follow from what its virtual inputs turned out to be; nothing without any.

    ``flowed`` holds their receipts by id. One whose own input came out differently than it was known has another key
    than was planned, so it is named by that.
    """
    if not flows:
        return {}
    assert planned.parts is not None
    node, streamed = planned.node, {}
    inputs = dict(planned.parts["inputs"])
    for role, flow in flows.items():
        receipt, known = flowed[flow.node.id], str(planned.parts["inputs"][role])
        key = known.rpartition(":")[2] if is_by_key(known) else str(flow.planned.key)
        streamed[role] = key if key in forms_of(receipt) else str(receipt["key"])
        inputs[role] = f"sha256:{receipt['digest']}"
    parts = {**planned.parts, "inputs": inputs}
    digests = {name: str((flowed.get(name) or project.current[name])["digest"]) for name in input_ids(node)}
    return {"key": key_of(parts), "key_parts": parts, "inputs": inputs_of(node, digests), "streamed": streamed}


def told(result: Result) -> Receipt:
    """What else a stage gave back: notes, and what ``file_evidence`` moves out of the receipt."""
    return {name: result[name] for name in ("notes", *_MOVED) if result.get(name)}


def file_evidence(receipt: Receipt, store: Callable[[bytes], str]) -> None:
    """Keep the digests of a receipt's tensors, and what tells their blocks, as evidence, which it then names."""
    for name in _MOVED:
        found = receipt.pop(name, None)
        if found:
            receipt[f"{name}_evidence"] = store(canonical_json(found))


@dataclass(frozen=True)
class Passed:
    """What flowed through one pass, by id: the receipts of what it measured, and those of all, known ones included."""

    measured: Mapping[str, Receipt]
    all: Mapping[str, Mapping[str, Any]]


def passed(project: Project, job: Job, results: Sequence[Result], shared: Receipt, into: Sequence[str]) -> Passed:
    """The receipts of what flowed into the targets ``into``, the first in a row first.

    ``shared`` are the fields that all receipts of the pass have in common. StageFailed (E-STREAM) when the digest of
    one is neither known nor measured.
    """
    measured: dict[str, Receipt] = {}
    every: dict[str, Mapping[str, Any]] = {}
    for role, flow in job.flows.items():
        for one, result in _measured(role, flow, results):
            name = one.node.id
            known = project.current.get(name)
            if result is None:
                if known is None:
                    what = f"{into[0]} was made of {name}, which is virtual, and nothing was measured of that"
                    raise StageFailed("E-STREAM", what)
                every[name] = known
                continue
            own = begun(project, one.planned, job) | with_digests(project, one.planned, one.below, every)
            own |= shared | {"metrics": result["metrics"], "digest": _digest(name, result), "files": result["files"]}
            own |= told(result)
            own |= {"stored": False, "shared_with": list(into)}
            if known is not None and known["key"] == own["key"]:
                own["observed"] = {"digest": known["digest"], "agrees": known["digest"] == own["digest"]}
            measured[name] = every[name] = own
    return Passed(measured, every)


def _digest(name: str, result: Result) -> str:
    records = [FileRecord(**record) for record in result["files"]]
    if not records:
        raise StageFailed("E-STREAM", f"{name} is virtual, and what flowed through it has no file")
    return tree_digest(records)


def _measured(role: str, flow: Flow, results: Sequence[Result]) -> Iterator[tuple[Flow, Result | None]]:
    """Each flow of a row with what was measured of it; one pass measures it once, whichever result tells it."""
    found = [result["passed"][role] for result in results if role in result.get("passed", {})]
    for below_role, below in flow.below.items():
        yield from _measured(below_role, below, found)
    yield flow, found[0] if found else None


def observed(item: Planned, receipt: Mapping[str, Any], *, evicted: bool = False) -> dict[str, Any]:
    """Whether the bytes are those that were known of the key: present, evicted, or measured as they flowed by."""
    known = item.receipt
    # What was accepted was built under another key: this key has not been observed to give it.
    if known is None or "accepted" in known:
        return {}
    remembered = known.get("stored") is False or item.node.virtual or evicted
    if item.presence != "present" and not remembered:
        return {}
    return {"observed": {"digest": known["digest"], "agrees": known["digest"] == receipt["digest"]}}


def refuse_too_large(receipt: Mapping[str, Any]) -> None:
    """RefusedInput (E-LEAF-SIZE) when the entry of a build would not fit in a line of the log, whatever its files."""
    if len(json.dumps(receipt)) < MAX_LINE // 4:
        # A statement repeats little of a receipt: it is nowhere near the limit.
        return
    nothing = "0" * 64
    try:
        bare = {name: value for name, value in receipt.items() if name not in ("files", "tensors", "blocks")}
        named = dict.fromkeys(("files_evidence", "tensors_evidence", "blocks_evidence"), nothing)
        build_statement({**bare, "digest": nothing, **named})
    except RefusedInput as error:
        error.hint = "keep long texts in a file that the target reads, or split a target with hundreds of inputs in two"
        raise


def of_devices(outcome: Outcome) -> dict[str, int | float]:
    """What was measured of GPUs, where anything was."""
    found: dict[str, int | float] = {}
    if outcome.peak_device is not None:
        found["peak_device_bytes"] = outcome.peak_device
    if outcome.energy_j is not None:
        found["device_energy_j"] = round(outcome.energy_j, 3)
    return found
