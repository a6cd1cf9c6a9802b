"""What past builds took, by kind and target: the part of the index that plans are predicted from.

Derived from the log, like everything in the index, and kept small: the newest builds of each target, and the size of
each artifact. Parameters are kept as two fingerprints: of all of them (``exact``), and of all but their numbers
(``shape``). A source counts as the same parameter whatever its content.

What one pass gave several targets was measured of all of them together: of ``n`` instances that were built in one pass,
each is kept with the ``n``-th part of the seconds (so that they add up to the pass) and the peaks of the whole pass. Of
a virtual target that flowed into others only its size is kept: the time was theirs. Nor is the time kept of a build
that went on from checkpoints: what came before them was measured nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ingot.core.digest import sha256_bytes

#: Builds kept of each target. A median of more says no more, and every run reads them.
_KEPT = 6
#: Hex digits of a fingerprint, and of a digest as the name of a size: a wrong one would only mislead a prediction.
_DIGITS = 12


class Past(NamedTuple):
    """One build: fingerprints of its parameters, bytes of its inputs, and what it took; None where it is not known."""

    exact: str
    shape: str
    input_bytes: int | None
    wall_s: float | None
    peak_anon_bytes: int | None
    bytes: int
    scratch_bytes: int | None


class History:
    """The builds of all logs, as far as predictions need them. ``to_json`` is what the index keeps."""

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        kept = {"builds": {}, "sizes": {}} if data is None else data
        #: kind → target → fields of ``Past``, oldest first. Plain lists: most processes only hand them on.
        self._builds: dict[str, dict[str, list[list[Any]]]] = dict(kept["builds"])
        self._sizes: dict[str, int] = dict(kept["sizes"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which a ``History`` can be made again."""
        return {"builds": self._builds, "sizes": self._sizes}

    def size_of(self, digest: str) -> int | None:
        """Bytes of an artifact that a build of the logs made; None for another digest."""
        return self._sizes.get(digest[:_DIGITS])

    def add(self, receipt: Mapping[str, Any]) -> None:
        """Take in one build; its inputs were added before it."""
        size = sum(int(file["size"]) for file in receipt["files"])
        self._sizes[str(receipt["digest"])[:_DIGITS]] = size
        kind, timings = str(receipt["kind"]), receipt["timings"]
        exact, shape = fingerprints(kind, receipt["key_parts"].get("params", {}))
        inputs = self._input_bytes(receipt)
        wall, anon, scratch = (
            _number(timings.get(name)) for name in ("wall_s", "peak_anon_bytes", "peak_scratch_bytes")
        )
        shared = len(receipt.get("shared_with", ()))
        if timings.get("resumed_checkpoints"):
            # What ended attempts took is not known.
            wall = None
        if shared and receipt.get("stored") is False:
            wall = anon = scratch = None
        elif shared and wall is not None:
            wall = wall / (1 + shared)
        past = Past(exact, shape, inputs, wall, anon, size, scratch)
        builds = self._builds.setdefault(kind, {}).setdefault(str(receipt["target"]), [])
        builds.append(list(past))
        del builds[:-_KEPT]

    def _input_bytes(self, receipt: Mapping[str, Any]) -> int | None:
        """Bytes of all inputs, and of the project files among the parameters; None when one is not known."""
        values = receipt["inputs"].values()
        items = [item for value in values for item in ([value] if isinstance(value, Mapping) else value)]
        sizes = [self.size_of(str(item["digest"])) for item in items]
        sources = _number(receipt["timings"].get("source_bytes"))
        if sources is None and _has_source(receipt["key_parts"].get("params", {})):
            return None
        return None if None in sizes else sum(size for size in sizes if size is not None) + int(sources or 0)

    def of_kind(self, kind: str) -> Iterator[tuple[str, Past]]:
        """(target, build) of every build kept of a kind; those of one target newest first."""
        for target, builds in self._builds.get(kind, {}).items():
            for fields in reversed(builds):
                yield target, Past(*fields)


def fingerprints(kind: str, params: object) -> tuple[str, str]:
    """(exact, shape) of a kind with parameters as key parts hold them."""
    return _print([kind, _plain(params, numbers=True)]), _print([kind, _plain(params, numbers=False)])


def _print(value: object) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())[:_DIGITS]


def _plain(value: Any, *, numbers: bool) -> Any:
    """Parameters with the content of sources left out; 1.0 is 1, as in a log; without ``numbers`` they all are 0."""
    if _is_source(value):
        return {"source": ""}
    if isinstance(value, Mapping):
        return {str(name): _plain(item, numbers=numbers) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, numbers=numbers) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if not numbers:
        return 0
    return int(value) if float(value).is_integer() else value


def _is_source(value: object) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"source"} and isinstance(value["source"], str)


def _has_source(value: object) -> bool:
    if isinstance(value, Mapping):
        return _is_source(value) or any(_has_source(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_source(item) for item in value)


def _number(value: object) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
