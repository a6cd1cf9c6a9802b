"""The causes for which a result is no longer that of its target: each in words, with its line in the spec."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.core.changes import ABSENT, Change, change_text, reasons_to_build
from ingot.core.graph import Node
from ingot.core.input_changes import Find, Given, InputChange, given_in, input_changes
from ingot.core.reasons import source_at, source_name, source_words
from ingot.core.spec_places import SpecPlaces, Spot

Receipt = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """A stable word, the words for a person, the line in the spec, and the facts for a program.

    ``note`` says what else is known, or what cannot be known.
    """

    code: str
    words: str
    spot: Spot | None = None
    note: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.spot is None:
            return self.words
        return f"{self.words} ({'' if self.spot.written else 'not set: the default; '}{self.spot})"

    def to_dict(self) -> dict[str, Any]:
        """The cause as ``--json`` shows it."""
        spot = None if self.spot is None else {"file": self.spot.file, "line": self.spot.line}
        shown = {"code": self.code, "detail": self.words, "where": spot, "note": self.note}
        return shown | {name: value for name, value in self.facts.items() if name != "code"}


@dataclass(frozen=True)
class Wanted:
    """What a target needs now: its key parts and, by role, its inputs."""

    node: Node
    parts: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Given]]


def causes(old: Receipt, new: Wanted, find: Find, places: SpecPlaces | None = None) -> list[Cause]:
    """What differs between a recorded result and what its target needs. Lines are found with ``places``."""
    changes = reasons_to_build(old["key_parts"], new.parts)
    found = [_cause(change, old, new.node, places) for change in changes if change.code != "input_changed"]
    if any(change.code == "input_changed" for change in changes):
        found += [_input_cause(change, new.node, places) for change in input_changes(given_in(old), new.inputs, find)]
    return found


def own_causes(old: Receipt, new: Wanted, places: SpecPlaces | None = None) -> list[Cause]:
    """The same without inputs: for a target whose inputs are not built yet."""
    bare = {name: value for name, value in old["key_parts"].items() if name != "inputs"}
    parts = {name: value for name, value in new.parts.items() if name != "inputs"}
    return causes({**old, "key_parts": bare}, Wanted(new.node, parts, {}), lambda _digest: None, places)


def _cause(change: Change, old: Receipt, node: Node, places: SpecPlaces | None) -> Cause:
    spot = None if places is None else _spot(change, node, places)
    if change.after is ABSENT and spot is not None:
        spot = Spot(spot.file, spot.line)  # a line that is gone is no default
    if change.code == "source_changed":
        words, note = _source_words(change, old, node)
        return Cause(change.code, words, spot, note, change.to_dict())
    words = change_text(change)
    sources = list(_sources_below(change, node))
    if change.before is ABSENT and sources:
        words = f"{change.name} added: {', '.join(sources)}"
    return Cause(change.code, words, spot, None, change.to_dict())


def _spot(change: Change, node: Node, places: SpecPlaces) -> Spot | None:
    if change.code in ("params_changed", "source_changed"):
        return places.param(node, change.path)
    if change.code == "kind_changed" and change.name == "kind":
        return places.param(node, ("kind",))
    if change.code == "seed_changed":
        return places.seed(node)
    if change.code == "tool_changed" and change.name in node.programs:
        return places.param(node, ("tools", change.name))
    return None


def _input_cause(change: InputChange, node: Node, places: SpecPlaces | None) -> Cause:
    rewired = change.before is None or change.after is None or change.before.name != change.after.name
    spot = places.role(node, change.role) if places is not None and rewired else None
    return Cause("input_changed", change.words, spot, None, change.to_dict())


def _sources_below(change: Change, node: Node) -> Iterator[str]:
    start = "".join(f"/{part}" for part in change.path)
    for pointer, source, _base in node.sources:
        if pointer == start or pointer.startswith(f"{start}/"):
            yield source_name(source)


def _source_words(change: Change, old: Receipt, node: Node) -> tuple[str, str | None]:
    """What is known of a source that has another digest: the log keeps digests, and no names and no bytes."""
    source = source_at(change.path, node)
    before, after = str(change.before["source"]), str(change.after["source"])
    words = f"{source_words(source, change.name)} changed"
    tags = before.partition(":")[0], after.partition(":")[0]
    if tags == ("python_stdlib", "python_stdlib"):
        return words, f"its text comes from the Python that runs ingot; the result's was {old['environment']['python']}"
    if tags[0] != tags[1]:
        kinds = {"file": "one file", "tree": "several files or a folder", "python_stdlib": "Python's documentation"}
        return words, f"it was {kinds[tags[0]]} and is {kinds[tags[1]]}"
    if tags[0] == "file":
        old_bytes, new_bytes = (tagged.partition(":")[2][:12] for tagged in (before, after))
        note = f"the file has other bytes: {old_bytes} → {new_bytes}"
    else:
        note = "a file of it was added, removed, renamed or changed; which one, the one digest of all does not tell"
    return words, "; ".join([note, *_git_hint(old, source)])


def _git_hint(old: Receipt, source: Mapping[str, Any]) -> list[str]:
    """The command that shows the change, where the result was built from a clean commit."""
    git = old.get("git") or {}
    paths = [source["path"]] if source.get("path") else list(source.get("paths") or ())
    if not git.get("commit") or git.get("clean") is not True or not paths:
        return []
    return [f"git diff --stat {str(git['commit'])[:12]} -- {' '.join(_quoted(str(path)) for path in paths)} shows it"]


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(os.path.normpath(path))
