"""``accept``: bless an artifact that exists as the result of a target's present key. A decision, never a rule.

The bytes do not change, so consumers stay as they are; the entry says under which key, in place of what build and why.
Refused: another kind or other roles, a measurement of other inputs (a number is of what it measured), a key that names
a tool which is not installed, and bytes that are not here and whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingot.core.acceptance import accept_statement
from ingot.core.changes import Change, part_changes
from ingot.core.key import NOT_INSTALLED
from ingot.core.locks import is_held
from ingot.core.lookup import Lookup, Receipt, place_text
from ingot.core.promotion import require_whole
from ingot.core.receipts import inputs_of
from ingot.errors import Busy, MissingTool, RefusedInput, UsageError

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.project import Project

#: What kinds that measure produce: their artifacts speak of their inputs.
_MEASUREMENTS = ("evaluation", "report")
_DIGITS = 8


@dataclass(frozen=True)
class Accepted:
    """What an acceptance did; ``recorded`` is the entry's place, None where the result was fresh already."""

    target: str
    digest: str
    key: str
    changes: tuple[Change, ...] = ()
    built: Mapping[str, Any] | None = None
    recorded: Mapping[str, Any] | None = None

    def to_dict(self, reason: str) -> dict[str, Any]:
        """The acceptance as ``--json`` shows it."""
        shown = {"target": self.target, "digest": self.digest, "key": self.key, "reason": reason}
        build = {} if self.built is None else {name: self.built[name] for name in ("origin", "index")}
        differs = [change.to_dict() for change in self.changes]
        return {**shown, "differs": differs, "build": build, **(self.recorded or {})}


def accept(project: Project, planned: Planned, digest: str | None, reason: str) -> Accepted:
    """Take the target's newest result, or the build that ``digest`` names, as the result of its present key.

    UsageError: E-INPUT-STALE, E-NOT-BUILT, E-DIGEST; RefusedInput: E-SOURCE, E-ACCEPT; MissingTool; Busy; StoreDamaged.
    """
    parts, key = _present_key(project, planned)
    lookup = Lookup(project)
    if digest is None and planned.state == "fresh":
        return Accepted(planned.node.id, str(planned.digest), key)
    build = _chosen(lookup, planned, digest)
    if planned.digest == build["digest"]:
        require_whole(project, planned.node.id, build)
        return Accepted(planned.node.id, str(build["digest"]), key)
    changes = tuple(part_changes(build["key_parts"], parts))
    _refuse_unlike(planned, build, parts, changes)
    require_whole(project, planned.node.id, build)
    inputs = inputs_of(planned.node, project.digests_of_inputs(planned.node))
    under = {"spec": planned.node.spec, "key": key, "key_parts": parts, "inputs": inputs}
    (place,) = project.record_all([accept_statement(planned.node.id, build, under, reason)])
    # The decision stands; a wish for a new build from before it does not.
    project.store.remember(planned.node.id)
    project.store.link_latest(planned.node.spec, planned.node.name, str(build["digest"]))
    return Accepted(planned.node.id, str(build["digest"]), key, changes, build, place)


def _present_key(project: Project, planned: Planned) -> tuple[Mapping[str, Any], str]:
    """The key that the target has now, which needs its inputs, its sources and its tools."""
    node = planned.node
    if planned.state == "waiting":
        facts = [reason.detail for reason in planned.reasons]
        what = f"{node.id} cannot be accepted: its key is not known while its inputs are not up to date"
        raise UsageError("E-INPUT-STALE", what, facts=facts, hint=f"accept or build them first; doit why {node.id}")
    if planned.parts is None or planned.key is None:
        facts = [reason.detail for reason in planned.reasons]
        raise RefusedInput("E-SOURCE", f"{node.id} cannot be accepted: its key is not known", facts=facts)
    if "key:sha256:" in str(planned.parts["inputs"]):
        what = f"{node.id} cannot be accepted: an input of it is virtual and was never measured, so it has no digest"
        raise UsageError("E-INPUT-STALE", what, hint="doit materialize writes and measures a virtual target")
    versions = {**planned.parts["tools"], **planned.parts.get("programs", {})}
    absent = sorted(name for name, version in versions.items() if version == NOT_INSTALLED)
    if absent:
        what = f"{node.id} cannot be accepted here: its key holds the version of {', '.join(absent)}, not installed"
        raise MissingTool("E-MISSING-TOOL", what, hint="accept it where its tools are installed")
    if is_held(project.store.root / "locks" / f"{planned.key}.lock"):
        raise Busy("E-BUSY", f"another process builds {node.id} now")
    return planned.parts, planned.key


def _chosen(lookup: Lookup, planned: Planned, digest: str | None) -> Receipt:
    """The build to accept: that of the target's newest result, or the newest of the same kind with this digest."""
    node = planned.node
    if digest is None:
        newest = lookup.newest(node.id)
        if newest is None:
            raise UsageError("E-NOT-BUILT", f"{node.id} was never built: there is nothing to accept")
        return lookup.build_of(newest)
    builds = lookup.builds_of(digest) if len(digest) >= _DIGITS else []
    digests = sorted({str(build["digest"]) for build in builds})
    if len(digests) == 1:
        own = [build for build in builds if build["target"] == node.id]
        alike = [build for build in builds if build["kind"] == node.kind]
        return (own or alike or builds)[-1]
    what = "several builds have" if digests else "no build has"
    hint = f"give {_DIGITS} digits or more; doit history shows what was built"
    raise UsageError("E-DIGEST", f"{what} a digest that begins with {digest[:64]}", facts=digests, hint=hint)


def _refuse_unlike(planned: Planned, build: Receipt, parts: Mapping[str, Any], changes: tuple[Change, ...]) -> None:
    """RefusedInput (E-ACCEPT) where the artifact cannot be what the target stands for."""
    node, name = planned.node, f"{str(build['digest'])[:12]} (built as {build['target']}, entry {place_text(build)})"
    if build["kind"] != node.kind:
        raise RefusedInput("E-ACCEPT", f"{name} is of kind {build['kind']}; {node.id} is of kind {node.kind}")
    roles = [sorted(_forms(item["inputs"])) for item in (build["key_parts"], parts)]
    if roles[0] != roles[1]:
        facts = [f"it was built from: {_listed(roles[0])}", f"{node.id} is built from: {_listed(roles[1])}"]
        raise RefusedInput("E-ACCEPT", f"{name} was built from other roles than {node.id} has", facts=facts)
    if node.produces in _MEASUREMENTS and any(change.code == "input_changed" for change in changes):
        what = f"{name} measured other inputs than {node.id} has now, and a measurement is of what it measured"
        raise RefusedInput("E-ACCEPT", what, hint=f"measure them: doit {node.id}")


def _forms(inputs: Mapping[str, Any]) -> list[str]:
    return [f"{role}{' (list)' if isinstance(value, list) else ''}" for role, value in inputs.items()]


def _listed(roles: list[str]) -> str:
    return ", ".join(roles) or "nothing"
