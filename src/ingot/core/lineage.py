"""Which weights an artifact was made of, step by step, as the logs say it; and what was measured of each alike.

The weights of a target are in its role ``model``; what else of weights flows in (an adapter) stands beside the step. An
artifact is known by its digest: names are those under which the receipts know it, and whoever shows them joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingot.core.lookup import Lookup, Receipt

#: The role in which the weights are handed on, and the roles in which more of them come in.
MAIN = "model"
BESIDE = ("adapter",)
_CANDIDATE, _REFERENCE = "candidate", "reference"
#: What is compared with, or stands for the candidate itself: no condition under which it is measured.
#: What a candidate said is its own, too; how it was asked is a condition (``asked``).
NO_CONDITION = (_CANDIDATE, _REFERENCE, "logits", "samples")


@dataclass(frozen=True)
class Link:
    """One artifact of a chain; ``kind`` is None where the logs name it as an input and hold no build of it."""

    digest: str
    target: str
    kind: str | None = None
    #: (target, kind) of what flowed in beside the model.
    beside: tuple[tuple[str, str | None], ...] = ()
    origin: str | None = None
    index: int | None = None


def inputs(receipt: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    """What a receipt has in a role: ``{"target", "digest"}`` each."""
    value = receipt["inputs"].get(role, [])
    return [value] if isinstance(value, Mapping) else list(value)


class Lineage:
    """Chains of one project's logs, each artifact looked up once."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self._known: dict[tuple[str, str], Receipt | None] = {}

    def find(self, item: Mapping[str, Any]) -> Receipt | None:
        """The newest build of an input's digest, of its target where there is one; None where no log has any."""
        place = str(item["digest"]), str(item["target"])
        if place not in self._known:
            builds = self.lookup.built(place[0])
            own = [build for build in builds if build["target"] == place[1]]
            self._known[place] = next(reversed(own or builds), None)
        return self._known[place]

    def chain(self, item: Mapping[str, Any], stop: str | None = None) -> tuple[Link, ...]:
        """The links from the first artifact that is known (or from the digest ``stop``) to ``item``, which is last.

        Two targets of the same bytes are one link, by the name of the later one.
        """
        links: list[Link] = []
        following: Mapping[str, Any] | None = item
        while following is not None and following["digest"] not in [link.digest for link in links]:
            receipt = self.find(following)
            links.append(self._link(following, receipt))
            if receipt is None or following["digest"] == stop:
                break
            following = self._next(receipt)
        return tuple(reversed(links))

    def _next(self, receipt: Receipt) -> Mapping[str, Any] | None:
        """The model that a result was made of, past what changed no byte."""
        digest, seen = receipt["digest"], {receipt["target"]}
        model = next(iter(inputs(receipt, MAIN)), None)
        while model is not None and model["digest"] == digest and model["target"] not in seen:
            seen.add(model["target"])
            below = self.find(model)
            model = None if below is None else next(iter(inputs(below, MAIN)), None)
        return model

    def _link(self, item: Mapping[str, Any], receipt: Receipt | None) -> Link:
        digest, target = str(item["digest"]), str(item["target"])
        if receipt is None:
            return Link(digest, target)
        found = [other for role in BESIDE for other in inputs(receipt, role)]
        beside = tuple((str(other["target"]), _kind(self.find(other))) for other in found)
        return Link(digest, target, str(receipt["kind"]), beside, str(receipt["origin"]), int(receipt["index"]))


def _kind(receipt: Receipt | None) -> str | None:
    return None if receipt is None else str(receipt["kind"])


def conditions(measurement: Mapping[str, Any], lookup: Lookup) -> dict[str, Any]:
    """What a measurement depends on besides whom it measures, and against whom: equal ones can be compared."""
    parts = measurement["key_parts"]
    others = {role: value for role, value in parts.get("inputs", {}).items() if role not in NO_CONDITION}
    found = {name: value for name, value in parts.items() if name != "inputs"}
    return found | {"inputs": others, "asked": asked(measurement, lookup)}


def asked(measurement: Mapping[str, Any], lookup: Lookup) -> dict[str, Any]:
    """How the answers were asked for that a measurement is of: prompts and settings; empty where it is of none.

    Answers whose build no log holds are like no others.
    """
    found: dict[str, Any] = {}
    for item in inputs(measurement, "samples"):
        build = next(reversed(lookup.built(str(item["digest"]))), None)
        if build is None:
            return {"samples": str(item["digest"])}
        found |= build["key_parts"].get("params", {})
        found |= {role: [str(it["digest"]) for it in inputs(build, role)] for role in build["inputs"] if role == "data"}
    return found


def against(measurement: Mapping[str, Any]) -> str | None:
    """The digest of what a measurement compares with."""
    found = inputs(measurement, _REFERENCE)
    return str(found[0]["digest"]) if found else None


def candidate(measurement: Mapping[str, Any]) -> str:
    """The digest of what was measured."""
    return str(inputs(measurement, _CANDIDATE)[0]["digest"])


def series_of(report: Mapping[str, Any], lineage: Lineage) -> Iterator[tuple[str, Receipt]]:
    """(task, measurement) of all that a report was made of; the task of its own ``evaluate`` is ``""``."""
    measured = [*inputs(report, "reference"), *inputs(report, "candidates")]
    for item in inputs(report, "evaluations"):
        receipt = lineage.find(item)
        if receipt is not None and inputs(receipt, _CANDIDATE):
            task = "" if receipt["kind"] == "evaluate" else _task(str(item["target"]), str(report["target"]), measured)
            yield task, receipt


def _task(name: str, report: str, measured: list[Mapping[str, Any]]) -> str:
    """``gsm8k`` of ``s:report.gguf@Q4_0.gsm8k``; names of instances may have dots, so the candidate's is taken away."""
    for item in measured:
        start = f"{report}.{str(item['target']).partition(':')[2]}"
        if name.startswith(f"{start}."):
            return name.removeprefix(f"{start}.")
    return name.rpartition(":")[2].rpartition(".")[2]
