"""What a reader must know of a candidate's numbers before he believes them, from receipts alone.

What a receipt does not say is not guessed: that the overlap of two data sets was not measured is itself a mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingot.view.page.book import Entry
from ingot.view.page.lineage import Lineage

#: Roles in which a model learns from rows or is fitted to them, and kinds that read rows only to prove themselves.
_LEARNS = ("data", "calibration")
_PROVES = ("gguf", "onnx", "coreml", "report")
#: Metrics by which a data set says that held-out rows were seen.
_OVERLAP = re.compile(r"contaminat|overlap|leak")


@dataclass(frozen=True)
class Mark:
    """``level``: bad (do not believe), warn (not shown to be sound), note (known and sound)."""

    level: Literal["bad", "warn", "note"]
    word: str
    detail: str


def of(digest: str, entry: Entry | None, chain: Lineage, data: Entry | None) -> Iterator[Mark]:
    """The marks of one candidate: its artifact, then whether it may have learned what it is measured on."""
    yield from _artifact(entry, chain, digest)
    yield from _contamination(digest, chain, data)


def _artifact(entry: Entry | None, chain: Lineage, digest: str) -> Iterator[Mark]:
    found = entry or (chain.nodes[digest].entry if digest in chain.nodes else None)
    if found is None:
        yield Mark("bad", "no build recorded", "no log here holds the build of these bytes: doit audit says more")
    elif found.presence == "damaged":
        yield Mark("bad", "artifact damaged", f"{'; '.join(found.damage)}: doit {found.target} builds it again")
    elif found.presence == "missing":
        detail = f"measured, but its bytes are no longer in the store: doit {found.target} builds it again"
        yield Mark("warn", "artifact not here", detail)
    elif found.presence == "not written":
        yield Mark("note", "not written", f"only streamed: doit materialize {found.target} writes it")


def _contamination(digest: str, chain: Lineage, data: Entry | None) -> Iterator[Mark]:
    """Whether what it was measured on can have been learned, by what the data sets' receipts say."""
    if data is None:
        return
    learners: dict[str, list[str]] = {}
    for node in chain.ancestors(digest):
        for role, _, source in () if node.entry is None else node.entry.inputs():
            proves = role == "data" and node.kind in _PROVES
            if role in _LEARNS and not proves and node.entry is not None:
                names = learners.setdefault(source, [])
                names += [name] if (name := node.entry.target.partition(":")[2]) not in names else []
    for source, names in learners.items():
        yield from _learned(" and ".join(names), source, chain, data)


def _learned(who: str, source: str, chain: Lineage, data: Entry) -> Iterator[Mark]:
    node = chain.nodes.get(source)
    own = None if node is None else node.entry
    yield from _told(own, who)
    if own is not data:
        yield from _told(data, who)
    if source != data.digest:
        name = source[:12] if own is None else own.target.partition(":")[2]
        detail = f"{who} learned from {name}, which is not what this is measured on, and nothing compared the two"
        yield Mark("warn", "overlap not measured", detail)
        return
    params = data.receipt["key_parts"].get("params", {})
    if "dedup" not in params:
        return
    if params["dedup"] is None:
        detail = f"{who} learned from the other rows of this data set; near-duplicates were kept (dedup: null), so "
        yield Mark("warn", "near-duplicates kept", detail + "held-out rows may resemble what was learned")
        return
    threshold = params["dedup"].get("threshold") if isinstance(params["dedup"], Mapping) else None
    detail = f"{who} learned from the other rows of this data set; near-duplicates ({threshold}) were removed before"
    yield Mark("note", "held out", detail)


def _told(dataset: Entry | None, who: str) -> Iterator[Mark]:
    metrics: Mapping[str, Any] = {} if dataset is None else dataset.receipt["metrics"]
    for name, metric in sorted(metrics.items()):
        if _OVERLAP.search(name) and metric["value"] > 0:
            assert dataset is not None
            detail = f"{dataset.target} says {name} {metric['value']:g} ({metric['method']}); {who} learned from it"
            yield Mark("bad", "contaminated", detail)
