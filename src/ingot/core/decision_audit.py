"""What ``audit`` finds out about decisions: whether each is true by what the builds in the logs say.

- ``lineage_broken``: a decision, or an input of an acceptance, names a digest that no entry built
- ``key_differs``: the key of an ``accept`` entry is not the hash of its parts
- ``accept_differs``: the build that an ``accept`` entry names is not there, wrote other bytes, is of another kind or
  was built from other roles; or the inputs of the entry are not those of its key parts
- ``promote_differs``: a ``promote`` entry lists a gate that the measurements it names do not pass, or a value that
  does not follow from them
- ``gate_differs``: a ``gate-failed`` or ``gate-warned`` entry tells of a limit that the measurements it names keep, or
  of a value that does not follow from them
- ``reproduced_differs``: a ``reproduced`` entry says that the bytes agree, or not, and its digests say otherwise; or no
  build gave the digest on record under its key
- ``rollback_differs``: a ``rollback`` goes to a digest that was never promoted for its target
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ingot.core import acceptance, gate_record
from ingot.core.digest import is_digest
from ingot.core.gates import Side, Verdict, passes, split_gate
from ingot.core.index import GATE_TYPES
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
            _check_gate(gate, gate["measured"])
    if entry.type in GATE_TYPES:
        _check_gate(fields, fields["digest"])


def _check_gate(gate: Mapping[str, Any], measured: object) -> None:
    split_gate(gate["gate"])
    form = gate_record.gate_of(gate).form
    if not is_digest(measured) or not isinstance(gate["value"], int | float):
        raise TypeError("a gate without what it was judged from")
    compared = gate.get("compared")
    if (form is None) != (compared is None) or (compared is not None and not is_digest(compared["measured"])):
        raise TypeError("a relative gate without what it was compared with")
    if compared is not None and compared["method"] == "paired" and len(gate["interval"]) != 2:
        raise TypeError("a paired interval without its ends")


def acceptances(decisions: Sequence[Entry]) -> dict[tuple[str, int], Receipt]:
    """What ``cache/results`` must hold of each acceptance, by the entry's place."""
    found: dict[tuple[str, int], Receipt] = {}
    for entry in decisions:
        if entry.type == "accept":
            place = {"origin": entry.origin, "index": entry.index}
            found[(entry.origin, entry.index)] = acceptance.filed(entry.statement, place)
    return found


#: One side of a gate, from the receipt of a measurement.
SideOf = Callable[[Receipt], Side]


def from_log(receipt: Receipt) -> Side:
    """A side of which no document is here."""
    return Side(receipt["metrics"], str(receipt["digest"]))


def contradictions(
    decisions: Sequence[Entry], builds: Sequence[tuple[Entry, Receipt]], side_of: SideOf = from_log
) -> Found:
    """Every problem of the decisions, as (code, entry, what is wrong). ``side_of`` may know documents, too."""
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
            found = _accept_problems(entry, by_place, by_digest.keys())
        elif entry.type == "rollback":
            goes = f"goes to {digest[:16]}…, which was never promoted for it"
            found = iter(() if (target, digest) in promoted else (("rollback_differs", goes),))
        else:
            found = _judged_problems(entry, by_digest, side_of)
        for code, what in found:
            yield code, entry, f"{name}{' ' if code == 'rollback_differs' else ': '}{what}"


def _judged_problems(
    entry: Entry, by_digest: Mapping[str, Sequence[Receipt]], side_of: SideOf
) -> Iterator[tuple[str, str]]:
    """What is wrong with a decision that says what was found when something was judged, or built again."""
    if entry.type == "promote":
        yield from (("promote_differs", what) for what in _promote_problems(entry, by_digest, side_of))
    elif entry.type in GATE_TYPES:
        yield from (("gate_differs", what) for what in _gate_problems(entry, by_digest, side_of))
    elif entry.type == "reproduced":
        builds = by_digest.get(_subject(entry)[1], ())
        yield from (("reproduced_differs", what) for what in _reproduced_problems(entry, builds))


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


def _promote_problems(entry: Entry, by_digest: Mapping[str, Sequence[Receipt]], side_of: SideOf) -> Iterator[str]:
    for gate in decision_of(entry.statement)["gates"]:
        same = _judged_again(gate, str(gate["measured"]), by_digest, side_of)
        if isinstance(same, str):
            yield same
        elif not any(passes(verdicts) for verdicts in same):
            yield f"gate {gate['gate']} fails at {gate['value']}, and it was promoted all the same"


def _gate_problems(entry: Entry, by_digest: Mapping[str, Sequence[Receipt]], side_of: SideOf) -> Iterator[str]:
    fields = decision_of(entry.statement)
    wanted = "fail" if entry.type == "gate-failed" else "warn"
    same = _judged_again(fields, str(fields["digest"]), by_digest, side_of)
    if isinstance(same, str):
        yield same
    elif not any(verdict.word == wanted for verdicts in same for verdict in verdicts):
        yield f"gate {fields['gate']} does not {wanted} at {fields['value']}"


def _judged_again(
    gate: Mapping[str, Any], measured: str, by_digest: Mapping[str, Sequence[Receipt]], side_of: SideOf
) -> list[list[Verdict]] | str:
    """The verdicts by which the recorded value is true, one list for each build of the measurement; or what is not."""
    compared = gate.get("compared")
    names = [measured] if compared is None else [measured, str(compared["measured"])]
    for digest in names:
        if digest not in by_digest:
            return f"gate {gate['gate']} was judged from {digest[:16]}…, which no entry built"
    theirs = [None] if compared is None else [side_of(receipt) for receipt in by_digest[names[1]]]
    judged = [gate_record.again(gate, side_of(ours), it) for ours in by_digest[measured] for it in theirs]
    same = [verdicts for verdicts in judged if any(verdict.value == gate["value"] for verdict in verdicts)]
    return same or f"gate {gate['gate']}: {gate['value']} is not what was measured"
