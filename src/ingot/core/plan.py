"""The plan: for each target whether its result is at hand, and if not, why.

A target is ``fresh`` when a result for its key is known and present; ``stale`` when it must be built; ``waiting`` when
an input must be built first, so that its key is not known yet. The planner decides and explains; it prints and
builds nothing.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from ingot.core import reasons
from ingot.core.acceptance import given_by, place_of
from ingot.core.executor import environment
from ingot.core.graph import Node
from ingot.core.index import Index
from ingot.core.key import NOT_INSTALLED, key_of, key_parts
from ingot.core.reasons import Reason
from ingot.core.sources import SourceReader
from ingot.core.store import Presence, Store
from ingot.errors import MissingTool, RefusedInput

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


class Planner:
    """Decides freshness against the index and the store of one project."""

    def __init__(self, index: Index, store: Store, sources: SourceReader) -> None:
        self._index = index
        self._store = store
        self._sources = sources
        self._source_digests: dict[str, tuple[str, ...]] = {}

    def plan(self, nodes: Iterable[Node]) -> dict[str, Planned]:
        """Every node's fate, in order; ``nodes`` are in topological order, inputs first."""
        planned: dict[str, Planned] = {}
        for node in nodes:
            waits = [name for name in input_ids(node) if planned[name].state != "fresh"]
            if waits:
                planned[node.id] = Planned(node, "waiting", (reasons.input_stale(waits),))
                continue
            try:
                planned[node.id] = self.check(node, {name: str(planned[name].digest) for name in input_ids(node)})
            except RefusedInput as error:
                if error.code != "E-SOURCE":
                    raise
                # A plan shows the other targets all the same; a run refuses to start.
                planned[node.id] = Planned(node, "stale", (Reason("source_missing", error.what),))
        return planned

    def check(self, node: Node, digests: Mapping[str, str]) -> Planned:
        """The fate of one node whose inputs have these digests (by id)."""
        parts = self.parts(node, digests)
        key = key_of(parts)
        latest = self._index.latest.get(node.id)
        builds = self._index.builds(key, latest)
        receipt = _choose(builds, latest)
        if receipt is None:
            previous = self._index.builds(latest["key"], latest) if latest else []
            why = reasons.explain(parts, _choose(previous, latest), node)
            return Planned(node, "stale", why, key, parts)
        presence, damage = self._store.presence(str(receipt["digest"]), receipt["files"])
        planned = Planned(node, "fresh", (), key, parts, receipt, presence)
        if presence == "missing":
            return replace(planned, state="stale", reasons=(reasons.artifact_missing(),))
        if presence == "damaged":
            return replace(planned, state="stale", reasons=tuple(reasons.artifact_damaged(item) for item in damage))
        if self._store.is_forgotten(node.id):
            return replace(planned, state="stale", reasons=(reasons.forgotten(),))
        restored = latest is None or latest["digest"] != receipt["digest"] or latest["key"] != key
        if restored:
            return replace(planned, restored=True, reasons=(reasons.found_again(receipt, node.id),))
        return replace(planned, reasons=(reasons.accepted(receipt),) if "accepted" in receipt else ())

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


def input_ids(node: Node) -> list[str]:
    """The ids of a node's immediate inputs, in the order of its roles."""
    return [f"{node.spec}:{name}" for names in node.inputs.values() for name in names]


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


@cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, or NOT_INSTALLED."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
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
