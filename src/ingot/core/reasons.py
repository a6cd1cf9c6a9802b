"""Why a target is stale: one reason, one function, one word that the user sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.core.graph import Node
from ingot.core.store import Damage

#: Longer values, such as whole scripts, are cut in reasons; ``doit show`` has them whole.
_SHOWN = 60


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
    return Reason("found_again", f"found again, built {receipt['timings']['finished'][:16].replace('T', ' ')}{name}")


def explain(parts: Mapping[str, Any], previous: Mapping[str, Any] | None, node: Node) -> tuple[Reason, ...]:
    """What differs between the key parts now and those of the target's newest result."""
    if previous is None:
        return (never_built(),)
    old = previous["key_parts"]
    found = [
        *_kind_changed(parts, old),
        *_params_changed(parts, old, node),
        *_inputs_changed(parts, old),
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
    if new["kind"] != old["kind"]:
        return
    before, after = dict(flatten(old["params"])), dict(flatten(new["params"]))
    paths = {pointer: source for pointer, source, _base in node.sources}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if name.endswith("source"):
            source = paths.get("/" + name.replace(".", "/").removesuffix("/source"), {})
            what = source.get("path") or source.get("paths") or source.get("python_stdlib") or name
            yield Reason("source_changed", f"source {what} changed")
        else:
            yield Reason("params_changed", f"{name} {_show(before, name)} → {_show(after, name)}")


def _inputs_changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Reason]:
    for role in sorted(new["inputs"].keys() | old["inputs"].keys()):
        before, after = old["inputs"].get(role), new["inputs"].get(role)
        if before != after:
            yield Reason("input_changed", f"input {role} changed: {_short(before)} → {_short(after)}")


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
    text = str(values[name]) if name in values else "–"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _short(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"{len(value)} artifacts"
    return str(value).partition(":")[2][:12]
