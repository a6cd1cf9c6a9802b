"""What the reader of gates knows of each node of a spec: its kind, what it measures, and of what."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.core.names import nearest, stands_for

if TYPE_CHECKING:
    from ingot.core.instances import Instance
    from ingot.core.targets import Draft

#: What every build is measured by where the spec has prices.
OF_PRICES = ("cost", "gpu_hours")
#: More names than this are no hint.
_LISTED = 24


@dataclass(frozen=True)
class Known:
    """A node. Of a hidden one also the node that implies it, what it was made for, and the name it has there.

    What a node measures whose parameters are wrong is not known: then it may measure anything.
    """

    name: str
    kind: str
    measured: tuple[str, ...]
    inputs: Mapping[str, tuple[str, ...]]
    implying: str = ""
    element: str = ""
    task: str = ""
    sure: bool = True

    def measures(self, metric: str) -> bool:
        """Whether it measures something of that name, or may."""
        return not self.sure or any(stands_for(name, metric) for name in self.measured)

    def hint(self, metric: str, nodes: Mapping[str, Known]) -> str | None:
        """The nearest name that it measures, else who measures this one of it, else all that it measures."""
        near = nearest(metric, self.measured)
        if near is not None and near != metric:
            return f"did you mean {near!r}?"
        others = [it.name for it in nodes.values() if it.element == self.name and it.measures(metric)]
        if others:
            return f"did you mean {f'{others[0]}.{metric}'!r}?"
        if not self.measured:
            return None
        more = len(self.measured) - _LISTED
        return f"it measures {', '.join(self.measured[:_LISTED])}{f' and {more} more' if more > 0 else ''}"


Nodes = Mapping[str, Known]


def known_nodes(
    drafts: Mapping[str, Draft], known: Mapping[str, tuple[Instance, ...]], *, prices: bool
) -> dict[str, Known]:
    """All nodes that are known, hidden ones included; with ``prices`` what each costs is measured, too."""
    also = OF_PRICES if prices else ()
    found = (node for target, instances in known.items() for node in _of_target(drafts[target], instances, also))
    return {node.name: node for node in found}


def _of_target(draft: Draft, instances: Iterable[Instance], also: tuple[str, ...]) -> Iterator[Known]:
    for instance in instances:
        inputs, variant = dict(instance.inputs), draft.variants.get(instance.own)
        measured = () if variant is None else (*variant.measured(instance.filled), *also)
        yield Known(instance.name, draft.kind, measured, inputs, sure=variant is not None)
        for implied in () if variant is None else variant.implied:
            for element in dict.fromkeys(implied.elements(inputs)):
                roles = implied.inputs_of(instance.name, inputs, element)
                measured = (*implied.measured(frozenset(roles)), *also)
                name = implied.node_name(instance.name, element)
                yield Known(name, implied.facts.kind, measured, roles, instance.name, element, implied.name)


def reference_of(node: Known, nodes: Nodes) -> str | None:
    """The node that measures the reference as this one measures its candidate; None where there is none."""
    if not node.implying:
        return None
    for reference in nodes[node.implying].inputs.get("reference", ()):
        for other in nodes.values():
            if (other.implying, other.element, other.task) == (node.implying, reference, node.task):
                return other.name
    return None


def measurers(name: str, metric: str, nodes: Nodes) -> list[Known]:
    """The nodes that measure something of a target: itself, else what was made for it."""
    own = nodes[name]
    if own.measures(metric):
        return [own]
    return [it for it in nodes.values() if it.element == name and it.measures(metric)]


def instances_of(name: str, nodes: Collection[str]) -> list[str]:
    """The nodes that a name means: one, or all instances of a matrix."""
    return [name] if name in nodes else [it for it in nodes if it.startswith(f"{name}@")]


def is_unsure(name: str, unsure: Collection[str]) -> bool:
    """Whether a name is of a target whose nodes are not known."""
    return re.split(r"[@.]", name, maxsplit=1)[0] in unsure
