"""Receipts and decisions as in-toto Statements (v1), and back.

A build is a Statement with SLSA provenance (v1); what SLSA has no field for lies in fields named ``ingot_*``,
as its rules for extensions ask. Everything else that a log records (``selected``, ``gate-failed``,
``promote``, …) is a Statement with the predicate type ``urn:ingot:<type>:1``. A statement holds content only:
no paths outside artifacts, no host or user names, no prompts. Format: ``docs/formats.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ingot.core.digest import canonical_json, is_digest, read_json
from ingot.errors import RefusedInput, RegistryDamaged

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:ingot:build:1"
BUILDER = "urn:ingot:builder:1"

#: The longest line of a log: the limit of C2SP entry bundles, whose lengths are two bytes.
MAX_LINE = 65_535

#: The name that in-toto's DigestSet gives to the digest of a folder (Go's Hash1 in lower-case hex).
TREE = "dirHash1"

_RECEIPT = frozenset(
    {"type", "target", "spec", "spec_digest", "kind", "revision", "key", "key_parts", "reproducibility", "digest"}
    | {"inputs", "metrics", "environment", "timings", "git"}
)
#: Fields that only some builds have, each in a field ``ingot_*`` of its own. ``stored``: false where the artifact was
#: measured and never published. ``streamed``: by role, the key of a virtual input that was read as it was made.
#: ``shared_with``: the other targets of the pass that gave this result. ``notes``: plain data of the stage.
_EXTRAS = ("observed", "predicted", "stored", "streamed", "shared_with", "notes")
#: What may lie in the evidence, by the receipt's field that names it: the file list, the digests of tensors, and how
#: their blocks were made.
_EVIDENCE = {"files_evidence": "files", "tensors_evidence": "tensors", "blocks_evidence": "blocks"}
_OPTIONAL = frozenset({"files", *_EVIDENCE, *_EXTRAS})


def now() -> str:
    """The time of day as the log writes it: RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def later_than(time: str) -> str | None:
    """The first time after ``time``, as the log writes it, where that is still to come; None where it is past."""
    moment = datetime.fromisoformat(time)
    if moment < datetime.now(UTC):
        return None
    return (moment + timedelta(milliseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def build_statement(receipt: Mapping[str, Any], store: Callable[[bytes], str] | None = None) -> dict[str, Any]:
    """The Statement of one build.

    When it would not fit in a line, its file list goes to ``store`` (which keeps bytes and returns their
    SHA-256) and the statement names it as ``files_evidence``. RefusedInput: E-RECEIPT for missing or unknown
    fields, E-LEAF-SIZE when it cannot be made to fit.
    """
    names = set(receipt)
    wrong = (_RECEIPT - names) | (names - _RECEIPT - _OPTIONAL)
    if wrong or receipt["type"] != "build" or ("files" in names) == ("files_evidence" in names):
        raise RefusedInput(
            "E-RECEIPT", f"a receipt has the wrong fields: {', '.join(sorted(wrong)) or 'type or files'}"
        )
    statement = _build(receipt)
    size = len(canonical_json(statement))
    if size > MAX_LINE and store is not None and "files" in receipt:
        evidence = store(canonical_json(receipt["files"]))
        slim = {name: value for name, value in receipt.items() if name != "files"} | {"files_evidence": evidence}
        statement = _build(slim)
        size = len(canonical_json(statement))
    if size > MAX_LINE:
        raise RefusedInput("E-LEAF-SIZE", f"the entry of {receipt['target']} has {size} bytes, more than {MAX_LINE}")
    return statement


def _build(receipt: Mapping[str, Any]) -> dict[str, Any]:
    timings = dict(receipt["timings"])
    started, finished = timings.pop("started"), timings.pop("finished")
    invocation = hashlib.sha256(f"{receipt['key']} {started} {finished}".encode()).hexdigest()[:32]
    predicate: dict[str, Any] = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {name: receipt[name] for name in ("target", "spec", "spec_digest", "kind")},
            "internalParameters": {name: receipt[name] for name in ("revision", "key", "key_parts", "reproducibility")}
            | {"single": sorted(role for role, value in receipt["inputs"].items() if isinstance(value, Mapping))}
            | {"empty": sorted(role for role, value in receipt["inputs"].items() if value == [])},
            "resolvedDependencies": _dependencies(receipt["inputs"]),
        },
        "runDetails": {
            "builder": {"id": BUILDER},
            "metadata": {"invocationId": invocation, "startedOn": started, "finishedOn": finished},
        },
        "ingot_metrics": receipt["metrics"],
        "ingot_environment": receipt["environment"],
        "ingot_timings": timings,
        "ingot_git": receipt["git"],
    }
    byproducts = [
        {"name": name, "digest": {"sha256": receipt[field]}} for field, name in _EVIDENCE.items() if field in receipt
    ]
    predicate["runDetails"] |= {"byproducts": byproducts} if byproducts else {}
    predicate |= {f"ingot_{name}": receipt[name] for name in _EXTRAS if name in receipt}
    subjects = [{"name": receipt["target"], "digest": {TREE: receipt["digest"]}}]
    subjects += [_file_subject(record) for record in receipt.get("files", ())]
    return {"_type": STATEMENT, "subject": subjects, "predicateType": PROVENANCE, "predicate": predicate}


def _file_subject(record: Mapping[str, Any]) -> dict[str, Any]:
    """A file of the artifact: a subject of its own, so that any in-toto verifier finds it by its SHA-256."""
    digests = {"sha256": record["sha256"], "xxh3_128": record["xxh3_128"]}
    return {"name": record["path"], "digest": digests, "annotations": {"size": record["size"]}}


def _dependencies(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": item["target"], "digest": {TREE: item["digest"]}, "annotations": {"role": role}}
        for role, value in sorted(inputs.items())
        for item in ([value] if isinstance(value, Mapping) else value)
    ]


def receipt_of(statement: Mapping[str, Any], read: Callable[[str], bytes] | None = None) -> dict[str, Any]:
    """The receipt that ``build_statement`` was given.

    ``read`` fetches evidence by its SHA-256; without it a receipt whose file list was moved out has
    ``files_evidence`` in place of ``files``. RegistryDamaged (E-REG-ENTRY) for what is not a build of ours.
    """
    try:
        return _receipt(statement, read)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise RegistryDamaged("E-REG-ENTRY", f"an entry is not a build statement of ingot: {error!r}") from error


def _receipt(statement: Mapping[str, Any], read: Callable[[str], bytes] | None) -> dict[str, Any]:
    predicate = statement["predicate"]
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    if statement["predicateType"] != PROVENANCE or definition["buildType"] != BUILD_TYPE:
        raise ValueError("another build type")
    internal = dict(definition["internalParameters"])
    single, empty = internal.pop("single"), internal.pop("empty")
    inputs: dict[str, Any] = {role: [] for role in empty}
    for item in definition["resolvedDependencies"]:
        role, value = item["annotations"]["role"], {"target": item["name"], "digest": item["digest"][TREE]}
        if role in single:
            inputs[role] = value
        else:
            inputs.setdefault(role, []).append(value)
    metadata = details["metadata"]
    tree, *files = statement["subject"]
    receipt = {
        "type": "build",
        **definition["externalParameters"],
        **internal,
        "digest": tree["digest"][TREE],
        "inputs": inputs,
        "metrics": predicate["ingot_metrics"],
        "environment": predicate["ingot_environment"],
        "timings": {"started": metadata["startedOn"], "finished": metadata["finishedOn"], **predicate["ingot_timings"]},
        "git": predicate["ingot_git"],
    }
    receipt |= {name: predicate[f"ingot_{name}"] for name in _EXTRAS if f"ingot_{name}" in predicate}
    named = _byproducts(details.get("byproducts") or [])
    evidence = named.pop("files", None)
    receipt |= {f"{name}_evidence": digest for name, digest in named.items()}
    if evidence is None:
        return receipt | {"files": [_file_record(subject) for subject in files]}
    return receipt | ({"files_evidence": evidence} if read is None else {"files": read_json(read(evidence))})


def _byproducts(listed: list[Any]) -> dict[str, str]:
    """The evidence that a build names, by what it is."""
    named = {str(item["name"]): item["digest"]["sha256"] for item in listed}
    if len(named) != len(listed) or not named.keys() <= set(_EVIDENCE.values()):
        raise ValueError("evidence of no known kind")
    if not all(is_digest(digest) for digest in named.values()):
        raise ValueError("a malformed digest of evidence")
    return named


def _file_record(subject: Mapping[str, Any]) -> dict[str, Any]:
    size = subject["annotations"]["size"]
    return {"path": subject["name"], "size": size, **subject["digest"]}


def evidence_of(statement: Mapping[str, Any]) -> list[str]:
    """The SHA-256 of all evidence that a build statement names."""
    try:
        return [str(item["digest"]["sha256"]) for item in statement["predicate"]["runDetails"]["byproducts"]]
    except (KeyError, TypeError):
        return []


def decision_statement(kind: str, fields: Mapping[str, Any], *, time: str | None = None) -> dict[str, Any]:
    """The Statement of a decision: ``selected``, ``gate-failed``, ``promote``, ``reproduced``, ….

    ``fields`` has ``target`` and ``digest`` (hex): the subject; the rest is the predicate. ``time`` is now
    unless given.
    """
    rest = {name: value for name, value in fields.items() if name not in ("target", "digest", "time")}
    subject = {"name": fields["target"], "digest": {TREE: fields["digest"]}}
    return _decision(kind, subject, rest | {"time": time or now()})


def origin_statement(origin: str, vkey: str, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The first entry of every log: the key that signs it, and the checkpoints of the logs that its writer saw."""
    subject = {"name": origin, "digest": {"sha256": hashlib.sha256(vkey.encode()).hexdigest()}}
    return _decision("origin", subject, {"vkey": vkey, "seen": seen, "time": now()})


def _decision(kind: str, subject: dict[str, Any], predicate: dict[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT,
        "subject": [subject],
        "predicateType": f"urn:ingot:{kind}:1",
        "predicate": predicate,
    }


def decision_of(statement: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a decision, with ``type``, ``target``, ``digest`` and ``time``."""
    try:
        subject = statement["subject"][0]
        (digest,) = subject["digest"].values()
        return {**statement["predicate"], "type": type_of(statement), "target": subject["name"], "digest": digest}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise RegistryDamaged("E-REG-ENTRY", f"an entry is not a decision of ingot: {error!r}") from error


def type_of(statement: Mapping[str, Any]) -> str:
    """``build``, or the name of the decision; the predicate type itself where it is none of ours."""
    kind = str(statement.get("predicateType"))
    if kind == PROVENANCE:
        return "build"
    prefix, _, rest = kind.partition("urn:ingot:")
    name, _, version = rest.partition(":")
    return name if not prefix and name and version == "1" else kind


def time_of(statement: Mapping[str, Any]) -> str:
    """When it happened, by its writer's clock (display and merging only); empty when it does not say."""
    predicate = statement.get("predicate")
    if not isinstance(predicate, Mapping):
        return ""
    if type_of(statement) == "build":
        details = predicate.get("runDetails")
        metadata = details.get("metadata") if isinstance(details, Mapping) else None
        return str(metadata.get("finishedOn", "")) if isinstance(metadata, Mapping) else ""
    return str(predicate.get("time", ""))
