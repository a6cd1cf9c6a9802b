"""Why a target is stale: one reason, one function, one word that the user sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core import acceptance
from ingot.core.graph import Node
from ingot.core.store import Damage

#: Longer values, such as whole scripts, are cut in reasons; ``doit show`` has them whole.
_SHOWN = 60
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
    return Reason("input_stale", f"waits for {', '.join(name.partition(':')[2] for name in names)}")


def artifact_missing() -> Reason:
    """The result is known and its bytes are not in the store."""
    return Reason("artifact_missing", "artifact missing from the store")


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
    old = previous["key_parts"]
    found = [
        *_kind_changed(parts, old),
        *_params_changed(parts, old, node),
        *_inputs_changed(parts, old, node),
        *_tools_changed(parts, old),
        *_seed_changed(parts, old),
    ]
    return tuple(found) or (Reason("key_changed", "the form of keys changed"),)


def _kind_changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Reason]:
    if new["kind"] != old["kind"]:
        yield Reason("kind_changed", f"kind {old['kind']} → {new['kind']}")
    elif new["revision"] != old["revision"]:
        yield Reason("kind_changed", f"kind {new['kind']} revision {old['revision']} → {new['revision']}")


def _params_changed(new: Mapping[str, Any], old: Mapping[str, Any], node: Node) -> Iterator[Reason]:
    from ingot.core.changes import is_source

    if new["kind"] != old["kind"]:
        return
    before, after = dict(flatten(old["params"])), dict(flatten(new["params"]))
    paths = {pointer: source for pointer, source, _base in node.sources}
    names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    # A value that replaced another says more than one that was not set before, as the defaults of a new variant.
    for name in sorted(names, key=lambda each: (before.get(each) is None or after.get(each) is None, each)):
        if name.rpartition(".")[2] == "source" and is_source({"source": after.get(name, before.get(name))}):
            source = paths.get("/" + name.replace(".", "/").removesuffix("/source"), {})
            yield Reason("source_changed", f"{_source_name(source, name)} changed")
        else:
            yield Reason("params_changed", f"{name} {_show(before, name)} → {_show(after, name)}")


def _source_name(source: Mapping[str, Any], name: str) -> str:
    """A source as a person wrote it: ``files scripts/count.py, data/*.jsonl``."""
    paths = [str(path) for path in source.get("paths") or ()]
    if paths:
        more = f" and {len(paths) - _PATHS_MAX} more" if len(paths) > _PATHS_MAX else ""
        return f"file{'s' * (len(paths) > 1)} {', '.join(paths[:_PATHS_MAX])}{more}"
    return f"source {source.get('path') or source.get('python_stdlib') or name}"


def _inputs_changed(new: Mapping[str, Any], old: Mapping[str, Any], node: Node) -> Iterator[Reason]:
    for role in sorted(new["inputs"].keys() | old["inputs"].keys()):
        before, after = old["inputs"].get(role), new["inputs"].get(role)
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list):
            how = _lists_differ(before, after, node.inputs.get(role, ()))
        else:
            how = f"{_short(before)} → {_short(after)}"
        yield Reason("input_changed", f"input {role} changed: {how}")


def _lists_differ(before: Sequence[str], after: Sequence[str], names: Sequence[str]) -> str:
    """``1 of 5 (gguf@Q4_0)``: the changed ones in place; else how many are new and how many are gone."""
    if len(before) == len(after):
        places = [at for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        named = [names[at] for at in places if at < len(names)][:_PATHS_MAX]
        more = f" and {len(places) - len(named)} more" if named and len(places) > len(named) else ""
        return f"{len(places)} of {len(after)}" + (f" ({', '.join(named)}{more})" if named else "")
    added, gone = len(set(after) - set(before)), len(set(before) - set(after))
    counted = [f"{count} {word}" for count, word in ((added, "new"), (gone, "gone")) if count]
    return f"{len(before)} → {len(after)} artifacts" + (f", {', '.join(counted)}" if counted else "")


def _tools_changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Reason]:
    for group in ("tools", "programs"):
        before, after = old.get(group, {}), new.get(group, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield Reason("tool_changed", f"tool {name} {before.get(name, '–')} → {after.get(name, '–')}")


def _seed_changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Reason]:
    if new.get("seed") != old.get("seed"):
        yield Reason("seed_changed", f"seed {old.get('seed', '–')} → {new.get('seed', '–')}")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, scalar) pairs of a JSON value; empty mappings and lists count as values."""
    if isinstance(value, Mapping) and value:
        for name in sorted(value):
            yield from flatten(value[name], f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{index}" if prefix else str(index))
    else:
        yield prefix, value


def _show(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "–"
    value = values[name]
    if value is None:
        return "not set"
    text = str(value).lower() if isinstance(value, bool) else str(value) or "''"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _short(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"{len(value)} artifacts"
    return str(value).partition(":")[2][:12]
