"""The plan: for each target whether its result is at hand, and if not, why.

A target is ``fresh`` when a result for its key is known and present; ``stale`` when it must be built; ``waiting`` when
an input must be built first, so that its key is not known yet. One that is declared virtual and whose bytes are not
there is ``virtual``, whatever is known of it: nothing is to be done for it but by what is built from it. One in
force whose bytes ``gc`` took away is ``evicted`` until something that is to be built needs them; then it is stale. The
planner decides and explains; it prints and builds nothing.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from ingot.core import eviction, gpu, reasons, virtual
from ingot.core.acceptance import given_by, place_of
from ingot.core.environment import environment
from ingot.core.graph import Node, input_ids
from ingot.core.index import Index
from ingot.core.key import NOT_INSTALLED, by_key, key_of, key_parts
from ingot.core.reasons import Reason
from ingot.core.sources import SourceReader
from ingot.core.store import Presence, Store
from ingot.errors import MissingTool, RefusedInput

#: Targets that are named where there may be many.
_NAMED = 3

State = Literal["fresh", "stale", "waiting", "virtual", "evicted", "building"]


@dataclass(frozen=True)
class Planned:
    """The fate of one target. ``key``, ``parts`` and ``receipt`` are None where they are not known yet.

    ``restored`` marks a fresh target whose newest entry pointed to another result: it needs one ``selected`` entry.
    """

    node: Node
    state: State
    reasons: tuple[Reason, ...] = ()
    key: str | None = None
    parts: Mapping[str, Any] | None = None
    receipt: Mapping[str, Any] | None = None
    presence: Presence = "missing"
    restored: bool = False

    @property
    def digest(self) -> str | None:
        """The digest of the result that the key names, whether or not its bytes are present."""
        return None if self.receipt is None else str(self.receipt["digest"])

    @property
    def waits(self) -> bool:
        """Whether an input must be built before its key is known."""
        return any(reason.code == "input_stale" for reason in self.reasons)

    @property
    def is_needed(self) -> bool:
        """Whether a run has to do with it: it is not fresh, or something is to be built from what is not here."""
        idle = self.state in ("virtual", "evicted") and any(reason.code == "not_needed" for reason in self.reasons)
        return self.state != "fresh" and not idle

    @property
    def identity(self) -> str | None:
        """What the target is in the keys of what is built from it; None while that is not known.

        A digest that is on record holds although the bytes are not here: a deterministic kind gives them again.
        """
        if self.state == "virtual":
            return self.digest or (None if self.key is None else by_key(self.key))
        lost = self.presence == "missing" and self.node.reproducibility == "deterministic"
        return self.digest if self.state in ("fresh", "evicted") or lost else None


class Planner:
    """Decides freshness against the index and the store of one project."""

    def __init__(self, index: Index, store: Store, sources: SourceReader) -> None:
        self._index = index
        self._store = store
        self._sources = sources
        self._source_digests: dict[str, tuple[str, ...]] = {}
        #: Targets, by id, whose bytes are to be here again if they were evicted.
        self.asked: set[str] = set()

    def plan(self, nodes: Iterable[Node]) -> dict[str, Planned]:
        """Every node's fate, in order; ``nodes`` are in topological order, inputs first."""
        planned: dict[str, Planned] = {}
        for node in nodes:
            identities = {name: planned[name].identity for name in input_ids(node)}
            waits = [name for name, identity in identities.items() if identity is None]
            if waits:
                state: State = "virtual" if node.virtual else "waiting"
                planned[node.id] = Planned(node, state, (reasons.input_stale(waits),))
                continue
            try:
                planned[node.id] = self.check(node, {name: str(identity) for name, identity in identities.items()})
            except RefusedInput as error:
                if error.code != "E-SOURCE":
                    raise
                # A plan shows the other targets all the same; a run refuses to start.
                planned[node.id] = Planned(node, "stale", (Reason("source_missing", error.what),))
        return virtual.told(eviction.told(planned, self.asked))

    def check(self, node: Node, digests: Mapping[str, str]) -> Planned:
        """The fate of one node whose inputs have these digests, or identities (by id)."""
        parts = self.parts(node, digests)
        key = key_of(parts)
        latest = self._index.latest.get(node.id)
        builds = self._index.builds(key, latest)
        receipt = _choose(builds, latest)
        if receipt is None:
            previous = self._index.builds(latest["key"], latest) if latest else []
            why = reasons.explain(parts, _choose(previous, latest), node)
            return Planned(node, "virtual" if node.virtual else "stale", why, key, parts)
        restored = latest is None or latest["digest"] != receipt["digest"] or latest["key"] != receipt["key"]
        return self._at_hand(Planned(node, "fresh", (), key, parts, receipt, restored=restored))

    def _at_hand(self, known: Planned) -> Planned:
        """The fate of a node whose key has a result: as ``known`` where that is at hand."""
        node, receipt = known.node, known.receipt
        assert receipt is not None
        presence, damage = self._store.presence(str(receipt["digest"]), receipt["files"])
        wounds = tuple(reasons.artifact_damaged(item) for item in damage)
        known = replace(known, presence=presence)
        if node.virtual and presence != "present":
            return replace(known, state="virtual", reasons=wounds)
        lacking = (reasons.artifact_missing(receipt),) if presence == "missing" else wounds
        forgotten = self._store.is_forgotten(node.id)
        evicted = presence == "missing" and self._store.is_evicted(str(receipt["digest"]))
        if evicted and not forgotten:
            # What a spec turns back to is wanted anew; what was in force when it was evicted is not.
            if not known.restored:
                return replace(known, state="evicted", reasons=(reasons.not_needed(),))
            lacking = (reasons.evicted(),)
        if forgotten and (evicted or not lacking):
            lacking = (reasons.forgotten(),)
        if lacking:
            return replace(known, state="stale", reasons=lacking, restored=False)
        if known.restored:
            return replace(known, reasons=(reasons.found_again(receipt, node.id),))
        return replace(known, reasons=(reasons.accepted(receipt),) if "accepted" in receipt else ())

    def parts(
        self, node: Node, digests: Mapping[str, str], source_digests: tuple[str, ...] | None = None
    ) -> dict[str, Any]:
        """The key parts of a node whose inputs have these digests (by id); sources are read unless given."""
        inputs = {
            role: tuple(digests[f"{node.spec}:{name}"] for name in names)
            for role, names in node.inputs.items()
            if names
        }
        tools = {name: tool_version(name) for name in node.tools}
        programs = {name: _program_output(tuple(command)) for name, command in node.programs.items()}
        found = self.digests_of_sources(node) if source_digests is None else source_digests
        return key_parts(node, inputs, found, tools, programs)

    def digests_of_sources(self, node: Node) -> tuple[str, ...]:
        """The tagged digests of a node's sources, read once; RefusedInput (E-SOURCE) names the target that needs it."""
        if node.id not in self._source_digests:
            try:
                self._source_digests[node.id] = tuple(
                    self._sources.digest({**source, "base": base}) for _pointer, source, base in node.sources
                )
            except RefusedInput as error:
                error.facts = (*error.facts, f"{node.id} needs it ({node.file}:{node.line})")
                raise
        return self._source_digests[node.id]


def _choose(builds: list[dict[str, Any]], latest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of several results of one key: the one that the target's newest entry names, else the oldest.

    The same bytes may have been measured more than once. An entry that is itself a build names its own
    measurements; one that only selects a digest names the last that were taken of it.
    Where nothing is named, what was built under the key goes before what was accepted under it.
    """
    named = [build for build in builds if latest is not None and build["digest"] == latest["digest"]]
    exact = [build for build in named if latest and place_of(given_by(build)) == place_of(latest)]
    return next(iter(exact or reversed(_built(named))), None) or next(iter(_built(builds)), None)


def _built(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were built under their key; where there is none, those that were accepted."""
    return [result for result in results if "accepted" not in result] or results


#: Libraries that a distribution carries, or takes from the system: name → (module, the tuple that is the version).
_LIBRARIES = {"libzstd": ("zstandard", "ZSTD_VERSION")}


@cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, or of a library inside of one; or NOT_INSTALLED."""
    try:
        if distribution in _LIBRARIES:
            module, name = _LIBRARIES[distribution]
            return ".".join(map(str, getattr(importlib.import_module(module), name)))
        return importlib.metadata.version(distribution)
    except ImportError:  # PackageNotFoundError is one
        return NOT_INSTALLED


@cache
def _program_output(command: tuple[str, ...]) -> str:
    """What a declared command line prints: a key part. NOT_INSTALLED when it cannot be run."""
    try:
        # As a stage would run it: with nothing of the user's environment but PATH.
        done = subprocess.run(
            command,
            env=environment(network=False),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return NOT_INSTALLED
    return (done.stdout or done.stderr).decode("utf-8", "replace").strip()


def missing_device(nodes: Iterable[Node], present: Callable[[], bool] = gpu.visible) -> RefusedInput | None:
    """The error (E-DEVICE) that names the targets that ask for a GPU where there is none, or None."""
    wanted = [node for node in nodes if node.device == "cuda"]
    if not wanted or present():
        return None
    return RefusedInput(
        "E-DEVICE",
        "the spec asks for 'device: cuda', and this machine shows no GPU",
        facts=[f"{node.id} ({node.kind}, {node.file}:{node.line})" for node in wanted[:_NAMED]]
        + ([f"and {len(wanted) - _NAMED} more"] if wanted[_NAMED:] else [])
        + (["CUDA_VISIBLE_DEVICES hides every GPU"] if gpu.hidden() else []),
        hint="use 'device: auto' or 'device: cpu', or build on a machine with a GPU",
    )


def missing_tools(nodes: Iterable[Node]) -> MissingTool | None:
    """The error that names everything that these nodes need and that is not installed, or None."""
    lacking: dict[tuple[str, str], list[str]] = {}
    extras, programs = set(), []
    for node in nodes:
        packages = [name for name in (*node.tools, *node.needs) if tool_version(name) == NOT_INSTALLED]
        absent = [name for name, command in node.programs.items() if _program_output(tuple(command)) == NOT_INSTALLED]
        if packages:
            lacking.setdefault((node.kind, ", ".join(packages)), []).append(node.id)
            extras.add(node.extra or "all")
        if absent:
            lacking.setdefault((node.kind, f"the program {', '.join(absent)} on PATH"), []).append(node.id)
            programs += absent
    facts = [
        f"{ids[0]}{f' and {len(ids) - 1} more' if ids[1:] else ''} ({kind}) needs {what}"
        for (kind, what), ids in lacking.items()
    ]
    if not facts:
        return None
    named = ["all"] if "all" in extras else sorted(extras)
    hint = f"pip install 'ingot[{','.join(named)}]'" if extras else f"install {', '.join(programs)}"
    return MissingTool(
        "E-MISSING-TOOL", "not everything that the stale targets need is installed", facts=facts, hint=hint
    )
