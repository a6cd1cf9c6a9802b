"""What ``audit`` finds out about decisions: whether each is true by what the builds in the logs say.

- ``lineage_broken``: a decision, or an input of an acceptance, names a digest that no entry built
- ``key_differs``: the key of an ``accept`` entry is not the hash of its parts
- ``accept_differs``: the build that an ``accept`` entry names is not there, wrote other bytes, is of another kind or
  was built from other roles; or the inputs of the entry are not those of its key parts
- ``promote_differs``: a ``promote`` entry lists a gate that the measurement it names does not pass, or a value that
  this measurement did not record
- ``reproduced_differs``: a ``reproduced`` entry says that the bytes agree, or not, and its digests say otherwise; or no
  build gave the digest on record under its key
- ``rollback_differs``: a ``rollback`` goes to a digest that was never promoted for its target
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingot.core import acceptance, gates
from ingot.core.digest import is_digest
from ingot.core.key import forms_of, key_of
from ingot.core.registry import Entry
from ingot.core.standing import Decision
from ingot.core.statement import decision_of

Receipt = Mapping[str, Any]
Found = Iterator[tuple[str, Entry, str]]


def check_form(entry: Entry) -> None:
    """RegistryDamaged (E-REG-ENTRY), KeyError or TypeError for a decision that does not have the fields of its type."""
    fields = decision_of(entry.statement)
    if entry.type == "accept":
        acceptance.filed(entry.statement, {"origin": entry.origin, "index": entry.index})
    if entry.type in ("promote", "rollback"):
        Decision.of(entry, ("", "", 0))
    if entry.type == "reproduced" and not (is_digest(fields["found"]) and isinstance(fields["key"], str)):
        raise TypeError("a reproduction without what came out")
    if entry.type == "promote":
        for gate in fields["gates"]:
            gates.split_gate(gate["gate"])
            _limits(gate)
            if not is_digest(gate["measured"]) or not isinstance(gate["value"], int | float):
                raise TypeError("a gate without what it was judged from")


def acceptances(decisions: Sequence[Entry]) -> dict[tuple[str, int], Receipt]:
    """What ``cache/results`` must hold of each acceptance, by the entry's place."""
    found: dict[tuple[str, int], Receipt] = {}
    for entry in decisions:
        if entry.type == "accept":
            place = {"origin": entry.origin, "index": entry.index}
            found[(entry.origin, entry.index)] = acceptance.filed(entry.statement, place)
    return found


def contradictions(decisions: Sequence[Entry], builds: Sequence[tuple[Entry, Receipt]]) -> Found:
    """Every problem of the decisions, as (code, entry, what is wrong)."""
    by_digest: dict[str, list[Receipt]] = {}
    for _entry, receipt in builds:
        by_digest.setdefault(str(receipt["digest"]), []).append(receipt)
    by_place = {(entry.origin, entry.index): receipt for entry, receipt in builds}
    promoted = {_subject(entry) for entry in decisions if entry.type == "promote"}
    for entry in decisions:
        target, digest = _subject(entry)
        name = f"{entry.type} of {target}"
        if is_digest(digest) and digest not in by_digest:
            yield "lineage_broken", entry, f"{name} names {digest[:16]}…, which no entry built"
        if entry.type == "accept":
            for code, what in _accept_problems(entry, by_place, by_digest.keys()):
                yield code, entry, f"{name}: {what}"
        elif entry.type == "promote":
            for what in _promote_problems(entry, by_digest):
                yield "promote_differs", entry, f"{name}: {what}"
        elif entry.type == "reproduced":
            for what in _reproduced_problems(entry, by_digest.get(digest, ())):
                yield "reproduced_differs", entry, f"{name}: {what}"
        elif entry.type == "rollback" and (target, digest) not in promoted:
            yield "rollback_differs", entry, f"{name} goes to {digest[:16]}…, which was never promoted for it"


def _reproduced_problems(entry: Entry, builds: Sequence[Receipt]) -> Iterator[str]:
    fields = decision_of(entry.statement)
    if fields["agrees"] is not (fields["found"] == fields["digest"]):
        said = "agree" if fields["agrees"] else "differ"
        yield f"{fields['found'][:16]}… came out, and it says that the bytes {said}"
    if builds and not any(fields["key"] in forms_of(receipt) for receipt in builds):
        yield f"no build of {fields['digest'][:16]}… has the key {fields['key'][:16]}…"


def _subject(entry: Entry) -> tuple[str, str]:
    fields = decision_of(entry.statement)
    return str(fields["target"]), str(fields["digest"])


def _accept_problems(
    entry: Entry, by_place: Mapping[tuple[str, int], Receipt], produced: Any
) -> Iterator[tuple[str, str]]:
    item = acceptance.filed(entry.statement, {"origin": entry.origin, "index": entry.index})
    parts = item["key_parts"]
    if key_of(parts) != item["key"]:
        yield "key_differs", "its key parts have another key"
    inputs = {role: _digests(value) for role, value in item["inputs"].items()}
    if inputs != {role: _tagged(value) for role, value in dict(parts.get("inputs", {})).items()}:
        yield "accept_differs", "its inputs are not those of its key parts"
    for digest in sorted({each for digests in inputs.values() for each in digests} - set(produced)):
        yield "lineage_broken", f"an input, {digest[:16]}…, was built by no entry"
    build, place = by_place.get(acceptance.place_of(item["build"])), item["build"]
    if build is None or build["digest"] != item["digest"]:
        yield "accept_differs", f"entry {place['index']} of {place['origin']} did not build {item['digest'][:16]}…"
    elif build["kind"] != parts["kind"]:
        yield "accept_differs", f"the artifact is of kind {build['kind']}, not {parts['kind']}"
    elif set(build["key_parts"].get("inputs", {})) != set(parts.get("inputs", {})):
        yield "accept_differs", "the artifact was built from other roles"


def _digests(value: Any) -> list[str]:
    return [str(item["digest"]) for item in ([value] if isinstance(value, Mapping) else value)]


def _tagged(value: Any) -> list[str]:
    return [str(item).removeprefix("sha256:") for item in ([value] if isinstance(value, str) else value)]


def _limits(gate: Mapping[str, Any]) -> dict[str, object]:
    """The limit of a recorded gate as a spec would write it; KeyError or TypeError where it has none."""
    limit: dict[str, object] = {side: float(gate["limit"][side]) for side in ("min", "max") if side in gate["limit"]}
    if not limit:
        raise KeyError("limit")
    return limit | {"bound": gate["limit"].get("bound", "value")}


def _promote_problems(entry: Entry, by_digest: Mapping[str, Sequence[Receipt]]) -> Iterator[str]:
    for gate in decision_of(entry.statement)["gates"]:
        receipts = by_digest.get(str(gate["measured"]), ())
        if not receipts:
            yield f"gate {gate['gate']} was judged from {str(gate['measured'])[:16]}…, which no entry built"
            continue
        judged = [gates.judge({gate["gate"]: _limits(gate)}, lambda _name, it=it: it["metrics"]) for it in receipts]  # type: ignore[misc]
        same = [verdicts for verdicts in judged if any(verdict.value == gate["value"] for verdict in verdicts)]
        if not same:
            yield f"gate {gate['gate']}: {gate['value']} is not what was measured"
        elif not any(gates.passes(verdicts) for verdicts in same):
            yield f"gate {gate['gate']} fails at {gate['value']}, and it was promoted all the same"
