"""The graph of a spec: its targets spread out into instances, in the order in which they can be built.

An *axis* is (target, parameter). A single role inherits the axes of its input; an axis reached by two paths is bound
once, so a diamond never multiplies. A list role collects every instance that agrees with what the single roles bound.
``gguf@Q8_0`` in ``from:`` names one instance, whose axes the consumer does not inherit.
Everything here is plain data; this module loads neither pydantic nor ruamel nor a kind: a cached graph is cheap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingot.core.spec import ResolvedSpec

AxisId = tuple[str, str]

#: More instances of one target, or of one spec, than a person can have meant.
MAX_INSTANCES = 500
MAX_NODES = 5000


@dataclass(frozen=True)
class Facts:
    """What a kind says for one set of parameters; ``params`` is plain JSON with the defaults filled in.

    ``sources`` are (JSON pointer into ``params``, the source as JSON with project-relative paths, the folder of the
    file that wrote it).
    """

    kind: str
    revision: int
    reproducibility: str
    produces: str
    params: dict[str, Any]
    sources: tuple[tuple[str, dict[str, Any], str], ...] = ()
    tools: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str | None = None
    programs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    network: bool = False


@dataclass(frozen=True)
class Node(Facts):
    """One instance of a target: what is built, from what, and where it is written.

    ``name`` is unique in the spec (``gguf@Q8_0``, ``report.gguf@Q8_0``); ``target`` is the name in the spec file.
    ``inputs`` maps roles to names of nodes; the roles in ``single_roles`` have exactly one.
    """

    spec: str = ""
    name: str = ""
    target: str = ""
    seed: int | None = None
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    single_roles: tuple[str, ...] = ()
    virtual: bool = False
    hidden: bool = False
    file: str = ""
    line: int = 0

    @property
    def id(self) -> str:
        """The name of the doit task: ``SPEC:NAME``."""
        return f"{self.spec}:{self.name}"

    @property
    def group(self) -> str:
        """The target that this is an instance of."""
        return self.target


@dataclass(frozen=True)
class SpecGraph:
    """A spec as the planner sees it. ``gates`` maps ``NODE.metric`` to ``{"max": …, "min": …}``."""

    name: str
    file: str
    digest: str
    seed: int
    gates: dict[str, dict[str, object]]
    nodes: tuple[Node, ...]


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


@dataclass(frozen=True)
class Implied:
    """What a hidden target needs to become nodes: see ``ingot.core.stage.Hidden``."""

    facts: Facts
    per: str
    roles: tuple[tuple[str, str], ...]
    single_roles: tuple[str, ...]
    into: str


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
        filled = {**inputs, **{wire.role: tuple(_collect(wire, bound, known)) for wire in wiring.wires if wire.many}}
        ordered = {wire.role: filled[wire.role] for wire in wiring.wires}
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


def expand(spec: ResolvedSpec) -> tuple[Node, ...]:
    """Every instance of every target, inputs before consumers, in an order that the spec file decides."""
    wirings = {name: target.wiring() for name, target in spec.targets.items()}
    order, _ = topological({name: wiring.targets() for name, wiring in wirings.items()})
    known: dict[str, tuple[Instance, ...]] = {}
    nodes: list[Node] = []
    for name in order:
        target = spec.targets[name]
        known[name] = bind(name, wirings[name], known)
        for instance in known[name]:
            variant = target.variants[instance.own]
            node = Node(
                **_shallow(variant.facts),
                spec=spec.name,
                name=instance.name,
                target=name,
                seed=spec.seed if variant.facts.reproducibility == "seeded" else None,
                inputs=dict(instance.inputs),
                single_roles=tuple(wire.role for wire in wirings[name].wires if not wire.many),
                virtual=target.virtual,
                file=target.file,
                line=target.line,
            )
            nodes += [node] if variant.implied is None else _imply(node, variant.implied, spec.seed)
    return tuple(nodes)


def _shallow(facts: Facts) -> dict[str, Any]:
    return {item.name: getattr(facts, item.name) for item in fields(Facts)}


def implied_elements(inputs: Mapping[str, tuple[str, ...]], per: str) -> tuple[str, ...]:
    """What gets a hidden node each: the reference first, where there is one, then the elements of ``per``."""
    return (*inputs.get("reference", ()), *inputs.get(per, ()))


def _imply(node: Node, implied: Implied, seed: int) -> Iterator[Node]:
    """The hidden nodes of ``node``, then ``node`` itself with them in role ``into`` (in the order of the elements)."""
    elements = implied_elements(node.inputs, implied.per)
    reference = node.inputs.get("reference", ())
    for element in dict.fromkeys(elements):
        inputs = {}
        for role, source in implied.roles:
            if source == "reference" and element in reference:
                continue  # the reference is not compared with itself
            names = (element,) if source == implied.per else node.inputs.get(source, ())
            if names:
                inputs[role] = names
        yield Node(
            **_shallow(implied.facts),
            spec=node.spec,
            name=f"{node.name}.{element}",
            target=node.target,
            seed=seed if implied.facts.reproducibility == "seeded" else None,
            inputs=inputs,
            single_roles=tuple(role for role in inputs if role in implied.single_roles),
            hidden=True,
            file=node.file,
            line=node.line,
        )
    into = {implied.into: tuple(f"{node.name}.{element}" for element in elements)}
    yield Node(**{**_shallow_node(node), "inputs": {**node.inputs, **into}})


def _shallow_node(node: Node) -> dict[str, Any]:
    return {item.name: getattr(node, item.name) for item in fields(Node)}


def to_json(graph: SpecGraph) -> dict[str, Any]:
    """A graph as plain JSON values."""
    return asdict(graph)


def from_json(data: Mapping[str, Any]) -> SpecGraph:
    """The graph that ``to_json`` made plain; KeyError, TypeError or ValueError where it is not one."""
    return SpecGraph(**{**data, "nodes": tuple(_node_from_json(item) for item in data["nodes"])})


_TUPLES = ("tools", "needs", "preload", "single_roles")


def _node_from_json(data: Mapping[str, Any]) -> Node:
    values = dict(data)
    for name in _TUPLES:
        values[name] = tuple(values[name])
    values["sources"] = tuple((pointer, source, base) for pointer, source, base in values["sources"])
    values["inputs"] = {role: tuple(names) for role, names in values["inputs"].items()}
    values["programs"] = {name: tuple(command) for name, command in values["programs"].items()}
    return Node(**values)
