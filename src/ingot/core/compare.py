"""Two results, or what two targets ask for, side by side. Pure: what is compared is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingot.core.changes import Change, param_changes, part_changes, same
from ingot.core.graph import Node
from ingot.core.input_changes import Find, InputChange, given_in, input_changes

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """One side: what it was called, what it turned out to be, and as much as is known of it.

    ``receipt`` is None where only key parts are known or nothing was built; ``node`` where no spec declares it.
    """

    name: str
    title: str
    parts: Json | None = None
    receipt: Json | None = None
    node: Node | None = None

    def to_dict(self) -> dict[str, Any]:
        """The side as ``--json`` shows it."""
        receipt = self.receipt or {}
        known = {name: receipt.get(name) for name in ("target", "kind", "digest", "key", "origin", "index")}
        return {"name": self.name, "title": self.title} | known


@dataclass(frozen=True)
class FileChange:
    """A file that only one side has, or that has other content; sizes in bytes, None where it is not."""

    path: str
    before: int | None
    after: int | None

    @property
    def what(self) -> str:
        """``added`` (only the second side has it), ``removed`` or ``changed``."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    def to_dict(self) -> dict[str, Any]:
        """The change as ``--json`` shows it."""
        return {"path": self.path, "change": self.what, "size_before": self.before, "size_after": self.after}


@dataclass(frozen=True)
class MetricPair:
    """One metric on both sides; None where a side has it not."""

    name: str
    before: Json | None
    after: Json | None

    @property
    def equal(self) -> bool:
        """Whether both sides measured the same."""
        return self.before is not None and self.after is not None and same(self.before, self.after)

    @property
    def difference(self) -> float | None:
        """The second value less the first; None where there is none or the units differ."""
        if self.before is None or self.after is None or self.before["unit"] != self.after["unit"]:
            return None
        difference: float = self.after["value"] - self.before["value"]
        return difference

    def to_dict(self) -> dict[str, Any]:
        """The pair as ``--json`` shows it."""
        return {
            "name": self.name,
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "equal": self.equal,
        }


@dataclass(frozen=True)
class Comparison:
    """What differs. ``metrics`` holds the equal ones too; ``environment`` and ``timings`` make nothing different."""

    spec: tuple[Change, ...]
    parts: tuple[Change, ...]
    inputs: tuple[InputChange, ...]
    files: tuple[FileChange, ...]
    metrics: tuple[MetricPair, ...]
    environment: tuple[Change, ...]
    timings: tuple[Change, ...]
    built: tuple[bool, bool]

    @property
    def equal(self) -> bool:
        """Whether both sides are the same, wherever and however fast they were made."""
        metrics = all(pair.equal for pair in self.metrics)
        return metrics and not (self.spec or self.parts or self.files) and self.built[0] == self.built[1]


def compare(one: Subject, other: Subject, find: Find) -> Comparison:
    """Compare all that is known of both sides. ``find`` gives the receipt of an input by its digest."""
    parts: list[Change] = []
    if one.parts is not None and other.parts is not None:
        parts = part_changes(one.parts, other.parts)
    before, after = one.receipt, other.receipt
    both = before is not None and after is not None
    return Comparison(
        spec=() if one.node is None or other.node is None else tuple(spec_changes(one.node, other.node)),
        parts=tuple(parts),
        inputs=tuple(input_changes(given_in(before), given_in(after), find)) if before and after else (),
        files=tuple(_files(before, after)) if before and after else (),
        metrics=tuple(_metrics(before, after)) if before and after else (),
        environment=tuple(_facts(_environment(before), _environment(after))) if before and after else (),
        timings=tuple(_facts(_timings(before), _timings(after))) if before and after else (),
        # A side of which only key parts are known is no side that was not built.
        built=(True, True) if both else (one.parts is not None, other.parts is not None),
    )


def spec_changes(one: Node, other: Node) -> Iterator[Change]:
    """What two targets ask for in another way: kind, wiring, seed and resolved parameters, as their specs say now."""
    yield from param_changes(_declared(one), _declared(other))


def _declared(node: Node) -> dict[str, Any]:
    inputs = {
        role: names[0] if role in node.single_roles else list(names) for role, names in node.inputs.items() if names
    }
    seed = {} if node.seed is None else {"seed": node.seed}
    # The parameters stand beside the target's own fields, as in a spec; none may have the name of such a field.
    return {**node.params, "kind": node.kind, "from": inputs, **seed}


def _files(one: Json, other: Json) -> Iterator[FileChange]:
    before, after = ({str(file["path"]): file for file in receipt["files"]} for receipt in (one, other))
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None or old["sha256"] != new["sha256"]:
            yield FileChange(path, None if old is None else old["size"], None if new is None else new["size"])


def _metrics(one: Json, other: Json) -> Iterator[MetricPair]:
    before, after = one["metrics"], other["metrics"]
    for name in sorted(before.keys() | after.keys()):
        yield MetricPair(name, before.get(name), after.get(name))


def _environment(receipt: Json) -> dict[str, Any]:
    return {**receipt["environment"], **{f"git {name}": value for name, value in receipt["git"].items()}}


def _timings(receipt: Json) -> dict[str, Any]:
    return {name: value for name, value in receipt["timings"].items() if name not in ("started", "finished")}


def _facts(one: Json, other: Json) -> Iterator[Change]:
    for name in sorted(one.keys() | other.keys()):
        if not same(one.get(name), other.get(name)):
            yield Change("fact", name, one.get(name), other.get(name))
