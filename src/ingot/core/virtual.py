"""Virtual targets: which flow into what is built from them, and which must lie on a disk for a while. Pure.

A virtual target *flows* into a role that its consumer streams, and through a virtual consumer into what that one flows
into. Into any other role it is *copied*: written into a scratch folder once in a run. Of several virtual targets in a
row only the last is ever copied, since the others flow into it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ingot.core import reasons

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned


@dataclass(frozen=True)
class Uses:
    """What is to be built from a virtual target, by name: what it flows into, and what needs a copy of it."""

    flows: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


def flows_into(node: Node, role: str) -> bool:
    """Whether a target reads the input in this role as a stream."""
    return role in node.streams and role in node.single_roles


def uses(planned: Mapping[str, Planned], *, always: bool = False) -> dict[str, Uses]:
    """The uses of each virtual target whose bytes are not there; ``planned`` holds inputs before consumers.

    What is fresh uses nothing, unless ``always``: then it is built again.
    """
    found = {name: Uses() for name, item in planned.items() if item.state == "virtual"}
    for name, item in reversed(list(planned.items())):
        # What flows on through a virtual consumer was found before: that one comes later in the plan.
        ends = found.get(name, Uses((item.node.name,) if always or item.is_needed else ()))
        for role, source in inputs_among(item.node, found):
            known = found[source]
            if flows_into(item.node, role):
                found[source] = replace(known, flows=_joined((*ends.flows, *ends.copies), known.flows))
            else:
                found[source] = replace(known, copies=_joined((*ends.flows, *ends.copies), known.copies))
    return found


def _joined(first: tuple[str, ...], then: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of the plan, each once: consumers are met from the last to the first."""
    return tuple(dict.fromkeys((*first, *then)))


def inputs_among(node: Node, found: Container[str]) -> Iterator[tuple[str, str]]:
    """(role, id) of the inputs of a target that are among these ids."""
    for role, names in node.inputs.items():
        for name in names:
            if f"{node.spec}:{name}" in found:
                yield role, f"{node.spec}:{name}"


def told(planned: dict[str, Planned]) -> dict[str, Planned]:
    """The same plan, in which each virtual target says what becomes of it."""
    for name, use in uses(planned).items():
        words = [reasons.streamed(use.flows)] if use.flows else []
        words += [reasons.copied(use.copies)] if use.copies else []
        item = planned[name]
        # That it was never built, or what changed since, says nothing of what will be done with it.
        own = item.reasons if item.key is None or item.presence == "damaged" else ()
        planned[name] = replace(item, reasons=(*own, *(words or [reasons.not_needed()])))
    return planned
