"""What ``audit`` proves of virtual targets: that what was read as it was made is on record with the digest it had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ingot.core.key import forms_of
from ingot.core.registry import Entry

Receipt = Mapping[str, Any]


def stream_contradictions(builds: Iterable[tuple[Entry, Receipt]]) -> Iterator[tuple[Entry, str]]:
    """The builds that name a virtual input by a key under which no entry has the digest of that input.

    The other form of a build's key follows from that name, so a wrong one would make it the result of another target.
    """
    listed = list(builds)
    known: dict[str, set[str]] = {}
    for _entry, receipt in listed:
        for key in forms_of(receipt):
            known.setdefault(key, set()).add(str(receipt["digest"]))
    for entry, receipt in listed:
        for role, key in (receipt.get("streamed") or {}).items():
            value = receipt["inputs"].get(role)
            if not isinstance(value, Mapping):
                yield entry, f"{receipt['target']} says that {role!r} flowed in, and has no such single input"
            elif str(value["digest"]) not in known.get(str(key), ()):
                what = f"the input {role!r} of {receipt['target']}, {str(value['digest'])[:16]}…, flowed in"
                yield entry, f"{what} as what has the key {str(key)[:16]}…: no entry says that this gave it"


def never_written(builds: Iterable[tuple[Entry, Receipt]]) -> set[str]:
    """The digests that were measured and never published."""
    receipts = [receipt for _entry, receipt in builds]
    stored = {str(receipt["digest"]) for receipt in receipts if receipt.get("stored") is not False}
    return {str(receipt["digest"]) for receipt in receipts} - stored
