"""``accept`` entries: an artifact built under one key is taken, by decision, as the result of another.

An entry holds the accepted key with all its parts, the inputs, the build that wrote the bytes, and the reason; what
differs is the difference of two stored records. ``cache/results`` files it under the accepted key as it stands in the
log. The build is looked up only when the result is wanted, so it does not matter which of the two is read first, nor
that they are in different logs. An acceptance whose build no log holds gives nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ingot.core.statement import decision_of, decision_statement
from ingot.errors import RegistryDamaged

Receipt = Mapping[str, Any]


def accept_statement(target: str, build: Receipt, under: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The entry by which a target takes the artifact of ``build``; ``under`` has spec, key, key_parts and inputs."""
    place = {name: build[name] for name in ("origin", "index", "key")}
    named = {"target": target, "digest": build["digest"], "build": place, "reason": reason}
    return decision_statement("accept", {**under, **named})


def filed(statement: Mapping[str, Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """What ``cache/results`` holds of an ``accept`` entry at ``place``; RegistryDamaged (E-REG-ENTRY) for another."""
    fields = decision_of(statement)
    try:
        texts = {name: str(fields[name]) for name in ("key", "digest", "target", "reason", "time")}
        parts, inputs = dict(fields["key_parts"]), dict(fields["inputs"])
        build = {**_place(fields["build"]), "key": str(fields["build"]["key"])}
        at = _place(place)
        str(parts["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryDamaged("E-REG-ENTRY", f"an entry is not an accept entry of ingot: {error!r}") from error
    accepted = {name: texts[name] for name in ("target", "reason", "time")} | at
    named = {"key": texts["key"], "digest": texts["digest"], "key_parts": parts, "inputs": inputs}
    return named | {"build": build, "accepted": accepted} | at


def resolved(item: Mapping[str, Any], builds: Iterable[Receipt]) -> dict[str, Any] | None:
    """The receipt of an accepted result: its build's, under the accepted key, with ``accepted``; None without a build.

    ``builds`` are the receipts of the key that its build has. ``origin`` and ``index`` stay those of the build:
    what was measured, where and when, was measured then.
    """
    for build in builds:
        same = build["digest"] == item["digest"] and build["kind"] == item["key_parts"]["kind"]
        if same and place_of(build) == place_of(item["build"]):
            own = {name: item[name] for name in ("key", "key_parts", "inputs", "accepted")}
            return dict(build) | own
    return None


def given_by(receipt: Receipt) -> Mapping[str, Any]:
    """The place of the entry that gives this result under its key: that which accepted it, else its build's."""
    found: Mapping[str, Any] = receipt.get("accepted", receipt)
    return found


def _place(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"origin": str(item["origin"]), "index": int(item["index"])}


def place_of(item: Mapping[str, Any]) -> tuple[str, int]:
    """The place of an entry, to compare."""
    return str(item["origin"]), int(item["index"])


def words(receipt: Receipt) -> str:
    """``accepted under a new key on 2026-11-20: REASON``."""
    accepted = receipt["accepted"]
    return f"accepted under a new key on {str(accepted['time'])[:10]}: {accepted['reason']}"
