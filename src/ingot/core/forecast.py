"""The forecast of a run: what it will take, and the refusal of what cannot fit, before its first stage starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ingot.core import capacity
from ingot.core.budgets import Budget, budgets
from ingot.core.capacity import Peak, Room, Work
from ingot.core.checkpoints import Kept
from ingot.core.floors import Floor, device_of, floors
from ingot.core.predict import Prediction, predict
from ingot.core.prices import Prices
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
    """What a run will take. ``unknown`` are its targets of which no build says anything.

    Of some of these arithmetic says what they need at the least (``floors``).
    """

    work: Work
    predictions: Mapping[str, Prediction | None]
    unknown: tuple[str, ...]
    disk: Peak | None
    memory: Peak | None
    room: Room
    #: The prices of each spec, by its name.
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: What ended builds have left of targets of this run, by name.
    kept: Mapping[str, Kept] = field(default_factory=dict)
    #: What the exports of the plan take where they run, by name; also those that are not built.
    budgets: Mapping[str, Budget] = field(default_factory=dict)

    @property
    def floors(self) -> Mapping[str, Floor]:
        """What targets need at the least, by name."""
        return self.work.floors

    def cost(self, name: str) -> tuple[float, str] | None:
        """What building a target is predicted to cost, and in which currency; None without prices or a prediction."""
        it, prices = self.predictions.get(name), Prices.of(self.prices.get(name.partition(":")[0], {}))
        if it is None or it.wall_s is None or prices is None:
            return None
        return prices.cost(it.wall_s, gpu=device_of(self.work.plan[name].node) == "cuda"), prices.currency

    def costs(self) -> dict[str, float]:
        """What the run is predicted to cost, by currency, as far as it is known."""
        found: dict[str, float] = {}
        for name in self.work.names:
            if (known := self.cost(name)) is not None:
                found[known[1]] = found.get(known[1], 0.0) + known[0]
        return found

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Targets of which nothing is known at all."""
        return tuple(name for name in self.unknown if name not in self.floors)

    @property
    def untimed(self) -> tuple[str, ...]:
        """Targets of which no build says how long they take: those, and of which every build was ended and went on."""
        found = ((name, self.predictions[name]) for name in self.work.names)
        return tuple(name for name, it in found if it is None or it.wall_s is None)

    def size_predicted(self, name: str) -> Prediction | None:
        """The prediction that gives the size of a target; None where arithmetic says more."""
        it = self.predictions[name]
        return it if it is not None and self.work.written(name) == it.bytes else None

    def memory_predicted(self, name: str) -> Prediction | None:
        """The prediction that gives the memory of a target; None where arithmetic says more."""
        return None if self.work.by_arithmetic(name) else self.predictions[name]

    def refusals(self) -> list[Refusal]:
        """What does not fit; empty when all does, as far as it is known."""
        here = (_no_space(self), _no_memory(self), _no_gpu_memory(self))
        there = (_no_budget(name, self.budgets.get(name)) for name in self.predictions)
        return [found for found in (*here, *there) if found is not None]

    def refusal(self) -> WillNotFit | None:
        """The error of the first of them, which names the others; None when all fits."""
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
    kept = {name: it for name in todo if (it := project.checkpoints_of(plan[name])) is not None}
    work = replace(
        capacity.work(plan, todo, predictions, parallel),
        floors=floors(plan, set(todo), project.store),
        kept={name: it.bytes for name, it in kept.items()},
    )
    devices = any(floor.device == "cuda" for floor in work.floors.values())
    unknown = tuple(name for name in todo if predictions[name] is None)
    room = capacity.room(project.store.root, devices=devices)
    prices = {name: graph.prices for name, graph in project.graphs.items() if graph.prices}
    stated = {name: graph.budget for name, graph in project.graphs.items()}
    exports = budgets(plan, set(todo), project.store, stated)
    return Forecast(work, predictions, unknown, work.disk(), work.memory(), room, prices, kept, exports)


def _is_work(item: Planned, copied: set[str], *, always: bool) -> bool:
    return item.node.id in copied if item.state == "virtual" else always or item.is_needed


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
    least = "at least " if found.unknown else ""
    what = (
        f"the disk has too little room: with {_names(peak.at)} cache/ grows by {least}{needed}, and {usable} are free"
    )
    sizes = {name: size for name in found.work.names if (size := found.work.written(name)) is not None}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
    facts = [_fact(name, sizes[name], found.size_predicted(name)) for name in largest]
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
    least = "at least " if any(found.work.by_arithmetic(name) for name in peak.at) else ""
    what = f"{_names(peak.at)}{together} {verb} {least}{needed} of memory, and {there} are available"
    facts = [_fact(name, found.work.memory_of(name) or 0, found.memory_predicted(name)) for name in peak.at]
    facts.append(f"available: {there} of {size_text(room.total_bytes)}")
    alone = replace(found.work, parallel=1).memory()
    fewer = ", or build one at a time (-n 1)" if alone and alone.needed_bytes <= room.available_bytes else ""
    # Of more than the machine has nothing is won by ending programs.
    within = peak.needed_bytes <= room.total_bytes
    first = "end other programs" if within else "make it smaller, or build it on a machine with more memory"
    hint = f"{first}{fewer}{_smaller(found)}; {_FORCE}"
    return Refusal(
        "E-MEMORY", peak.at[0], peak.needed_bytes, room.available_bytes, what, (*facts, *_unknown(found)), hint
    )


def _no_gpu_memory(found: Forecast) -> Refusal | None:
    """What the largest GPU cannot hold, by arithmetic: of GPUs nothing else is known before a run."""
    there = found.room.gpu_bytes
    needs = {name: floor.memory_bytes for name, floor in found.floors.items() if floor.device == "cuda"}
    name = max(needs, key=lambda each: needs[each], default=None)
    if name is None or there is None or needs[name] <= there:
        return None
    what = f"{name} needs at least {size_text(needs[name])} of GPU memory, and the largest GPU has {size_text(there)}"
    hint = f"use a smaller dtype, fewer trained weights or 'device: cpu'; {_FORCE}"
    return Refusal("E-MEMORY", name, needs[name], there, what, (_fact(name, needs[name], None),), hint)


def _no_budget(name: str, budget: Budget | None) -> Refusal | None:
    """An export whose weights and one session are more than the spec says there will be where it runs."""
    if budget is None or budget.fits is not False:
        return None
    assert budget.memory_bytes is not None
    needed, stated = size_text(budget.needed_bytes), size_text(budget.memory_bytes)
    session = f" and one session of {budget.context:,} tokens" if budget.session_bytes else ""
    facts = [f"weights: at least {size_text(budget.weights_bytes or 0)}"]
    if budget.session_bytes:
        each = size_text(budget.token_bytes or 0)
        facts.append(f"a session: {size_text(budget.session_bytes)} of keys and values, {each} a token")
    return Refusal(
        "E-BUDGET",
        name,
        budget.needed_bytes,
        budget.memory_bytes,
        f"{name} cannot run in its budget: its weights{session} take at least {needed}, and the budget is {stated}",
        tuple(facts),
        f"ask for fewer bits or a shorter context, or give 'budget:' of the spec more memory; {_FORCE}",
    )


def _fact(name: str, size: int, prediction: Prediction | None) -> str:
    """How much of something a target takes, and where that comes from; without a prediction from arithmetic."""
    if prediction is None:
        return f"{name}: at least {size_text(size)} by arithmetic on its parameters and inputs"
    return f"{name}: {size_text(size)} predicted from {prediction.source_text()}"


def _unknown(found: Forecast) -> Iterator[str]:
    if found.uncounted:
        yield f"no history yet, and not counted: {_names(found.uncounted)}"


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
