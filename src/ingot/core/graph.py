"""The graph of a spec: its targets spread out into nodes, in the order in which they can be built.

Everything here is plain data; this module loads neither pydantic nor ruamel nor a kind: a cached graph is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ingot.core.instances import Instance, bind, topological
from ingot.core.stage_values import ELEMENT
from ingot.core.verdicts import Gate

if TYPE_CHECKING:
    from ingot.core.spec import ResolvedSpec


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
    #: Single roles that are read as a stream, and whether instances can be built in one pass.
    streams: tuple[str, ...] = ()
    one_pass: bool = False
    #: Whether its memory does not grow with what it streams.
    windowed: bool = False
    #: Whether the seed of the spec is part of its key.
    seeded: bool = False
    #: Whether it goes on from checkpoints of an attempt that was ended.
    resumes: bool = False
    #: Where it computes by its parameters: ``auto``, ``cpu``, ``cuda``; None where there is no choice.
    device: str | None = None
    #: JSON pointers of the parameters that change no byte, so are no part of the key.
    keyless: tuple[str, ...] = ()
    #: What it measures with the roles that are filled; capitals in a name stand for several names.
    measured: tuple[str, ...] = ()


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


def input_ids(node: Node) -> list[str]:
    """The ids of a node's immediate inputs, in the order of its roles."""
    return [f"{node.spec}:{name}" for names in node.inputs.values() for name in names]


@dataclass(frozen=True)
class SpecGraph:
    """A spec as the planner sees it. ``gates`` are spread out as they are judged."""

    name: str
    file: str
    digest: str
    seed: int
    gates: tuple[Gate, ...]
    nodes: tuple[Node, ...]
    #: What an hour costs (``core.prices``); empty without.
    prices: dict[str, Any] = field(default_factory=dict)
    #: The memory that exports are to run in (``core.budgets``); empty without.
    budget: dict[str, Any] = field(default_factory=dict)
    #: How candidates are compared with what is active (``core.gate_rules`` reads it); None where that is switched off.
    regression: dict[str, Any] | None = field(default_factory=dict)


#: The names of what a kind measures, by the roles that are filled (``Stage.measured``).
MeasuredOf = Callable[[frozenset[str]], tuple[str, ...]]


def nothing(_roles: frozenset[str]) -> tuple[str, ...]:
    """What a kind measures that does not say."""
    return ()


@dataclass(frozen=True)
class Implied:
    """What a hidden target needs to become nodes: see ``ingot.core.stage.Hidden``."""

    facts: Facts
    per: tuple[str, ...]
    roles: tuple[tuple[str, str], ...]
    single_roles: tuple[str, ...]
    into: str | None
    name: str = ""
    besides: str = ""
    measured: MeasuredOf = nothing

    def elements(self, inputs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """What gets a hidden node each, in order; one that is named in two roles stands twice."""
        left_out = inputs.get(self.besides, ())
        return tuple(name for role in self.per for name in inputs.get(role, ()) if name not in left_out)

    def node_name(self, implying: str, element: str) -> str:
        """The name of the hidden node of an element."""
        return ".".join(filter(None, (implying, element, self.name)))

    def nodes(self, implying: str, inputs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The names of all its hidden nodes, as the implying target reads them."""
        return tuple(self.node_name(implying, element) for element in self.elements(inputs))

    def inputs_of(
        self, implying: str, inputs: Mapping[str, tuple[str, ...]], element: str
    ) -> dict[str, tuple[str, ...]]:
        """What the hidden node of an element is built from, by the roles that are filled."""
        found = {role: _sources(implying, inputs, source, element) for role, source in self.roles}
        return {role: names for role, names in found.items() if names}


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
                **_shallow(replace(variant.facts, measured=variant.measured(frozenset(instance.filled)))),
                spec=spec.name,
                name=instance.name,
                target=name,
                seed=spec.seed if variant.facts.seeded else None,
                inputs=dict(instance.inputs),
                single_roles=tuple(wire.role for wire in wirings[name].wires if not wire.many),
                virtual=target.virtual,
                file=target.file,
                line=target.line,
            )
            nodes += _imply(node, variant.implied, spec.seed)
    return tuple(nodes)


def _shallow(facts: Facts) -> dict[str, Any]:
    return {item.name: getattr(facts, item.name) for item in fields(Facts)}


def _imply(node: Node, implied: Sequence[Implied], seed: int) -> Iterator[Node]:
    """The hidden nodes of ``node``, then ``node`` itself with those that come back to it in their roles."""
    handed: dict[str, tuple[str, ...]] = {}
    for one in implied:
        for element in dict.fromkeys(one.elements(node.inputs)):
            inputs = one.inputs_of(node.name, node.inputs, element)
            yield Node(
                **_shallow(replace(one.facts, measured=one.measured(frozenset(inputs)))),
                spec=node.spec,
                name=one.node_name(node.name, element),
                target=node.target,
                seed=seed if one.facts.seeded else None,
                inputs=inputs,
                single_roles=tuple(role for role in inputs if role in one.single_roles),
                hidden=True,
                file=node.file,
                line=node.line,
            )
        if one.into is not None:
            handed[one.into] = (*handed.get(one.into, ()), *one.nodes(node.name, node.inputs))
    yield replace(node, inputs={**node.inputs, **handed})


def _sources(implying: str, inputs: Mapping[str, tuple[str, ...]], source: str, element: str) -> tuple[str, ...]:
    """The nodes that fill a role of the hidden node of ``element`` (``ingot.core.stage.Hidden.roles``)."""
    if source == ELEMENT:
        return (element,)
    hidden, colon, role = source.partition(":")
    if colon:
        names = (element,) if role == ELEMENT else inputs.get(role, ())
        return tuple(f"{implying}.{name}.{hidden}" for name in names)
    # Nothing is compared with itself.
    return tuple(name for name in inputs.get(source, ()) if name != element)


def to_json(graph: SpecGraph) -> dict[str, Any]:
    """A graph as plain JSON values."""
    return asdict(graph)


def from_json(data: Mapping[str, Any]) -> SpecGraph:
    """The graph that ``to_json`` made plain; KeyError, TypeError or ValueError where it is not one."""
    nodes, gates = tuple(_node_from_json(item) for item in data["nodes"]), tuple(Gate(**item) for item in data["gates"])
    return SpecGraph(**{**data, "nodes": nodes, "gates": gates})


_TUPLES = ("tools", "needs", "preload", "single_roles", "streams", "keyless", "measured")


def _node_from_json(data: Mapping[str, Any]) -> Node:
    values = dict(data)
    for name in _TUPLES:
        values[name] = tuple(values[name])
    values["sources"] = tuple((pointer, source, base) for pointer, source, base in values["sources"])
    values["inputs"] = {role: tuple(names) for role, names in values["inputs"].items()}
    values["programs"] = {name: tuple(command) for name, command in values["programs"].items()}
    return Node(**values)
