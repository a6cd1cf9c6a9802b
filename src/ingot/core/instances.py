"""The instances of a target: one for each combination of the axes that reach it.

An *axis* is (target, parameter). A single role inherits the axes of its input; an axis reached by two paths is bound
once, so a diamond never multiplies. A list role collects every instance that agrees with what the single roles bound.
``gguf@Q8_0`` in ``from:`` names one instance, whose axes the consumer does not inherit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

AxisId = tuple[str, str]

#: More instances of one target, or of one spec, than a person can have meant.
MAX_INSTANCES = 500
MAX_NODES = 5000


@dataclass(frozen=True)
class Wire:
    """One role of one target as written: names of targets or of instances."""

    role: str
    many: bool
    names: tuple[str, ...]


@dataclass(frozen=True)
class Wiring:
    """What decides a target's instances: its roles in the order of the kind, its own axes as written."""

    wires: tuple[Wire, ...]
    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def targets(self) -> tuple[str, ...]:
        """The targets that the roles name."""
        return tuple(name.partition("@")[0] for wire in self.wires for name in wire.names)


@dataclass(frozen=True)
class Instance:
    """One combination of a target: the labels it is bound to (inherited first), its own labels, its inputs."""

    target: str
    bound: tuple[tuple[AxisId, str], ...] = ()
    own: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``target`` or ``target@v1+v2``."""
        return f"{self.target}@{'+'.join(label for _, label in self.bound)}" if self.bound else self.target

    @property
    def filled(self) -> frozenset[str]:
        """The roles that something fills."""
        return frozenset(role for role, names in self.inputs.items() if names)


def topological(edges: Mapping[str, Iterable[str]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(every name after the names that it points to, the cycles found). Names without an entry are ignored."""
    state: dict[str, int] = {}
    order: list[str] = []
    cycles: dict[frozenset[str], tuple[str, ...]] = {}
    for start in edges:
        path: list[str] = []
        stack = [(start, iter(edges[start]))] if start not in state else []
        if stack:
            state[start], path = 1, [start]
        while stack:
            name, following = stack[-1]
            step = next((item for item in following if item in edges and state.get(item) != 2), None)
            if step is None:
                stack.pop()
                path.pop()
                state[name] = 2
                order.append(name)
            elif state.get(step) == 1:
                cycle = tuple(path[path.index(step) :])
                cycles.setdefault(frozenset(cycle), cycle)
            else:
                state[step] = 1
                path.append(step)
                stack.append((step, iter(edges[step])))
    return tuple(order), tuple(cycles.values())


class TooManyError(ValueError):
    """A target has more instances than MAX_INSTANCES."""


def bind(target: str, wiring: Wiring, known: Mapping[str, tuple[Instance, ...]]) -> tuple[Instance, ...]:
    """The instances of a target whose inputs' instances are ``known``; TooManyError beyond MAX_INSTANCES."""
    partials: list[tuple[dict[AxisId, str], dict[str, tuple[str, ...]]]] = [({}, {})]
    for wire in wiring.wires:
        if not wire.many:
            choices = [(dict(found.bound if free else ()), found.name) for found, free in _named(wire.names[0], known)]
            partials = [
                (bound | axes, {**inputs, wire.role: (name,)})
                for bound, inputs in partials
                for axes, name in choices
                if _agree(bound, axes)
            ]
            _limit(len(partials))
    combinations = list(itertools.product(*(labels for _, labels in wiring.axes)))
    _limit(len(partials) * len(combinations))
    result = []
    for bound, inputs in partials:
        ordered = {
            wire.role: tuple(dict.fromkeys(_collect(wire, bound, known))) if wire.many else inputs[wire.role]
            for wire in wiring.wires
        }
        for own in combinations:
            mine = {(target, param): label for (param, _), label in zip(wiring.axes, own, strict=True)}
            result.append(Instance(target, tuple((bound | mine).items()), own, ordered))
    return tuple(result)


def _limit(count: int) -> None:
    if count > MAX_INSTANCES:
        raise TooManyError


def _named(name: str, known: Mapping[str, tuple[Instance, ...]]) -> Iterator[tuple[Instance, bool]]:
    """The instances that a name in ``from:`` stands for, and whether their axes are free (it names the target)."""
    target, pinned, _ = name.partition("@")
    for instance in known[target]:
        if not pinned or instance.name == name:
            yield instance, not pinned


def _agree(bound: Mapping[AxisId, str], axes: Mapping[AxisId, str]) -> bool:
    return all(bound.get(axis, label) == label for axis, label in axes.items())


def _collect(wire: Wire, bound: Mapping[AxisId, str], known: Mapping[str, tuple[Instance, ...]]) -> Iterator[str]:
    for name in wire.names:
        for instance, free in _named(name, known):
            if not free or _agree(bound, dict(instance.bound)):
                yield instance.name
