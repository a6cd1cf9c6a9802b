"""The forecast of a run: what it will take, and the refusal of what cannot fit, before its first stage starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ingot.core import capacity
from ingot.core.capacity import Peak, Room, Work
from ingot.core.predict import Prediction, predict
from ingot.core.quantities import size_text
from ingot.core.virtual import uses
from ingot.errors import WillNotFit

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.project import Project

#: Targets that are named where there may be many.
_NAMED = 3
_FORCE = "doit --force builds all the same"


@dataclass(frozen=True)
class Refusal:
    """One thing that does not fit: the target that is in work then, what is needed, and what there is."""

    code: str
    target: str
    needed_bytes: int
    available_bytes: int
    what: str
    facts: tuple[str, ...]
    hint: str

    def error(self) -> WillNotFit:
        """As an error."""
        return WillNotFit(self.code, self.what, facts=self.facts, hint=self.hint)

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {
            "code": self.code,
            "target": self.target,
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "detail": self.what,
        }


@dataclass(frozen=True)
class Forecast:
    """What a run will take. ``unknown`` are its targets of which no build says anything."""

    work: Work
    predictions: Mapping[str, Prediction | None]
    unknown: tuple[str, ...]
    disk: Peak | None
    memory: Peak | None
    room: Room

    def refusals(self) -> list[Refusal]:
        """What does not fit; empty when all does, as far as it is known."""
        return [found for found in (_no_space(self), _no_memory(self)) if found is not None]

    def refusal(self) -> WillNotFit | None:
        """The error (E-SPACE, else E-MEMORY) that says so before the first stage starts; None when all fits."""
        found = self.refusals()
        if not found:
            return None
        error = found[0].error()
        error.facts = (*error.facts, *(f"{each.code} too: {each.what}" for each in found[1:]))
        return error


def forecast(
    project: Project,
    plan: Mapping[str, Planned],
    names: Sequence[str],
    *,
    parallel: int = 1,
    always: bool = False,
) -> Forecast:
    """What building ``names``, which come in the order of building, will take; fresh ones only with ``always``.

    A virtual target counts where a scratch copy of it is needed: that lies on the disk to the end.
    """
    copied = {name for name, use in uses(plan, always=always).items() if use.copies}
    # What flows takes the time and the memory of what it flows into, and no disk.
    todo = [name for name in names if _is_work(plan[name], copied, always=always)]
    predictions = predict(plan, todo, project.index.history, project.sources)
    work = capacity.work(plan, todo, predictions, parallel)
    unknown = tuple(name for name in todo if predictions[name] is None)
    return Forecast(work, predictions, unknown, work.disk(), work.memory(), capacity.room(project.store.root))


def _is_work(item: Planned, copied: set[str], *, always: bool) -> bool:
    return item.node.id in copied if item.state == "virtual" else always or item.state != "fresh"


def _fits(work: Work, room: Room) -> bool:
    disk, memory = work.disk(), work.memory()
    return (disk is None or disk.needed_bytes <= room.usable_bytes) and (
        memory is None or not room.total_bytes or memory.needed_bytes <= room.available_bytes
    )


def _no_space(found: Forecast) -> Refusal | None:
    peak, room = found.disk, found.room
    if peak is None or peak.needed_bytes <= room.usable_bytes:
        return None
    needed, usable = size_text(peak.needed_bytes), size_text(room.usable_bytes)
    what = f"the disk has too little room: with {_names(peak.at)} cache/ grows by {needed}, and {usable} are free"
    largest = sorted(found.work.known(), key=lambda pair: -pair[1].bytes)[:_NAMED]
    facts = [f"{name}: {size_text(it.bytes)} predicted from {it.source_text()}" for name, it in largest]
    facts.append(
        f"free: {size_text(room.free_bytes)}, of which {size_text(room.reserve_bytes)} are kept for the registry"
    )
    missing = size_text(peak.needed_bytes - room.usable_bytes)
    hint = f"free {missing}{_smaller(found)}; {_FORCE}"
    return Refusal("E-SPACE", peak.at[0], peak.needed_bytes, room.usable_bytes, what, (*facts, *_unknown(found)), hint)


def _no_memory(found: Forecast) -> Refusal | None:
    peak, room = found.memory, found.room
    if peak is None or not room.total_bytes or peak.needed_bytes <= room.available_bytes:
        return None
    needed, there = size_text(peak.needed_bytes), size_text(room.available_bytes)
    together = " at the same time" if peak.at[1:] else ""
    verb = "need" if together else "needs"
    what = f"{_names(peak.at)}{together} {verb} {needed} of memory, and {there} are available"
    facts = [_memory_fact(name, found.predictions[name]) for name in peak.at]
    facts.append(f"available: {there} of {size_text(room.total_bytes)}")
    alone = replace(found.work, parallel=1).memory()
    fewer = ", or build one at a time (-n 1)" if alone and alone.needed_bytes <= room.available_bytes else ""
    hint = f"end other programs{fewer}{_smaller(found)}; {_FORCE}"
    return Refusal(
        "E-MEMORY", peak.at[0], peak.needed_bytes, room.available_bytes, what, (*facts, *_unknown(found)), hint
    )


def _memory_fact(name: str, prediction: Prediction | None) -> str:
    assert prediction is not None
    assert prediction.peak_anon_bytes is not None
    return f"{name}: {size_text(prediction.peak_anon_bytes)} predicted from {prediction.source_text()}"


def _unknown(found: Forecast) -> Iterator[str]:
    if found.unknown:
        yield f"no history yet, and not counted: {_names(found.unknown)}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", " if more else " and ").join(names[:_NAMED]) + more


def _smaller(found: Forecast) -> str:
    """Parts of the work that are known to fit, as commands; the largest ones, and none that is a part of another."""
    work = found.work
    known = {name for name, _prediction in work.known()}
    parts = {name: work.only(name) for name in work.names if not work.plan[name].node.hidden}
    fitting = [name for name, part in parts.items() if known.issuperset(part.names) and _fits(part, found.room)]
    whole = [name for name in fitting if not any(name in work.above[other] for other in fitting if other != name)]
    largest = sorted(whole, key=lambda name: -len(parts[name].names))[:_NAMED]
    return f", or build what fits: {', '.join(f'doit {name}' for name in largest)}" if largest else ""
