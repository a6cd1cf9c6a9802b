"""Why a target is stale: one reason, one function, one word that the user sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core import acceptance
from ingot.core.changes import ABSENT, Change, Path, change_text, pair_text, reasons_to_build
from ingot.core.graph import Node
from ingot.core.store import Damage

#: More paths or names than this are counted.
_PATHS_MAX = 3


@dataclass(frozen=True)
class Reason:
    """A stable word (``params_changed``) and the detail in words a person uses."""

    code: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """The reason as ``--json`` shows it."""
        return {"code": self.code, "detail": self.detail}


def never_built() -> Reason:
    """No result of this target is known."""
    return Reason("never_built", "never built")


def input_stale(names: Sequence[str]) -> Reason:
    """Inputs must be built first, so the key is not known yet."""
    return Reason("input_stale", f"waits for {_listed([name.partition(':')[2] for name in names])}")


def artifact_missing(receipt: Mapping[str, Any]) -> Reason:
    """The result is known and its bytes are not in the store: they were lost, or never written."""
    if receipt.get("stored") is False:
        return Reason("artifact_missing", "never written: it was virtual until now")
    return Reason("artifact_missing", "artifact missing from the store")


def streamed(names: Sequence[str]) -> Reason:
    """A virtual target flows into these."""
    return Reason("streamed", f"streamed into {_listed(names)}")


def copied(names: Sequence[str]) -> Reason:
    """A virtual target is written for the time of a run, for what cannot read it as a stream."""
    return Reason("copied", f"a scratch copy for {_listed(names)}")


def not_needed() -> Reason:
    """A target whose bytes are not here, and of which nothing is to be built."""
    return Reason("not_needed", "nothing that is to be built needs it")


def evicted(names: Sequence[str] = ()) -> Reason:
    """The bytes of a result were taken away, and these need them; without any the target itself is to have it again."""
    return Reason("evicted", f"evicted, and needed by {_listed(names)}" if names else "found again, but evicted")


def asked_for() -> Reason:
    """The bytes of an evicted result are to be here again."""
    return Reason("evicted", "evicted, and asked for")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _PATHS_MAX} more" if len(names) > _PATHS_MAX else ""
    return f"{', '.join(names[:_PATHS_MAX])}{more}"


def artifact_damaged(damage: Damage) -> Reason:
    """The bytes in the store are not those that were published."""
    return Reason("artifact_damaged", f"artifact damaged: {damage.path} {damage.detail}")


def forgotten() -> Reason:
    """``doit forget`` asked for a new build."""
    return Reason("forgotten", "forgotten by request")


def found_again(receipt: Mapping[str, Any], target: str | None = None) -> Reason:
    """A result built before is at hand; where ``target`` is given and another target built it, that one is named."""
    name = f" as {receipt['target']}" if target is not None and receipt["target"] != target else ""
    if "accepted" in receipt:
        return Reason("found_again", f"found again{name}, {acceptance.words(receipt)}")
    return Reason("found_again", f"found again, built {receipt['timings']['finished'][:16].replace('T', ' ')}{name}")


def accepted(receipt: Mapping[str, Any]) -> Reason:
    """The result was built under another key and accepted under this one."""
    return Reason("accepted", acceptance.words(receipt))


def summary(reasons: Sequence[Reason]) -> str:
    """The first reason, and how many more there are: ``rank 8 → 16 (+2 more)``."""
    if not reasons:
        return ""
    return reasons[0].detail + (f" (+{len(reasons) - 1} more)" if len(reasons) > 1 else "")


def explain(parts: Mapping[str, Any], previous: Mapping[str, Any] | None, node: Node) -> tuple[Reason, ...]:
    """What differs between the key parts now and those of the target's newest result."""
    if previous is None:
        return (never_built(),)
    changes = reasons_to_build(previous["key_parts"], parts)
    found = tuple(Reason(change.code, _words(change, node)) for change in sorted(changes, key=_telling))
    return found or (Reason("key_changed", "the form of keys changed"),)


def _telling(change: Change) -> bool:
    """A value that replaced another says more than one that was not set before, as the defaults of a new variant."""
    unset = (None, ABSENT)
    return change.code == "params_changed" and (change.before in unset or change.after in unset)


def _words(change: Change, node: Node) -> str:
    if change.code == "source_changed":
        return f"{source_words(source_at(change.path, node), change.name)} changed"
    if change.code == "input_changed" and ABSENT not in (change.before, change.after):
        return f"input {change.name} changed: {_inputs_differ(change, node.inputs.get(change.name, ()))}"
    return change_text(change)


def source_at(path: Path, node: Node) -> Mapping[str, Any]:
    """The source that a node's parameters declare at a path; empty when there is none any more."""
    pointer = "".join(f"/{part}" for part in path)
    return next((source for known, source, _base in node.sources if known == pointer), {})


def source_words(source: Mapping[str, Any], name: str) -> str:
    """A source in a sentence: ``files scripts/count.py, data/*.jsonl``; by its parameter's name without one."""
    paths = source.get("paths") or ()
    several = len(paths) > 1 or any(char in str(path) for path in paths for char in "*?[")
    kind = f"file{'s' * several}" if paths else "source"
    return f"{kind} {source_name(source) or name}"


def source_name(source: Mapping[str, Any]) -> str:
    """A source as a person wrote it: its path, its paths, or what of Python's library; empty for none."""
    if source.get("python_stdlib"):
        return f"python_stdlib {source['python_stdlib']}"
    paths = [str(path) for path in source.get("paths") or ()]
    more = f" and {len(paths) - _PATHS_MAX} more" if len(paths) > _PATHS_MAX else ""
    return str(source.get("path") or f"{', '.join(paths[:_PATHS_MAX])}{more}")


def _inputs_differ(change: Change, names: Sequence[str]) -> str:
    """``1 of 5 (gguf@Q4_0)``: the changed ones in place; else how many are new and how many are gone."""
    before, after = change.before, change.after
    if not isinstance(before, list) or not isinstance(after, list):
        return " → ".join(pair_text(before, after))
    if len(before) == len(after):
        places = [at for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        named = [names[at] for at in places if at < len(names)][:_PATHS_MAX]
        more = f" and {len(places) - len(named)} more" if named and len(places) > len(named) else ""
        return f"{len(places)} of {len(after)}" + (f" ({', '.join(named)}{more})" if named else "")
    added, gone = len(set(after) - set(before)), len(set(before) - set(after))
    counted = [f"{count} {word}" for count, word in ((added, "new"), (gone, "gone")) if count]
    return f"{len(before)} → {len(after)} artifacts" + (f", {', '.join(counted)}" if counted else "")
