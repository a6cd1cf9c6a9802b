"""Memory budgets: what each export takes where it runs, and how many sessions fit in the memory that the spec states.

    budget: {memory: 64GB}

Laws. A session is one text of as many tokens as the export's context, with its keys and values (layers × 2 × key-value
heads × head size, each as wide as the runtime keeps it). Weights are there once, whatever the number of sessions. Of an
export that is at hand the weights are its measured bytes; of one that is to be built they are arithmetic on the form
that is asked for, so never more than it takes. The program, tables and activations are not counted: what is said to
not fit does not, and what is said to fit is an upper bound of sessions. A budget is a wish about a machine that is not
this one, and part of no key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ingot.core.floors import arithmetic
from ingot.core.graph import Node
from ingot.core.plan import Planned
from ingot.core.store import Store

#: What an export is, by what a kind writes: where nothing of the kind is planned, no kind is loaded.
EXPORTS = frozenset({"coreml", "gguf", "onnx"})


@dataclass(frozen=True)
class Budget:
    """What one export takes (``core.stage.Serving``), and the memory that the spec states for it; None: not known.

    ``measured``: the weights are the bytes of the artifact itself.
    """

    weights_bytes: int | None
    token_bytes: int | None
    context: int | None
    measured: bool = False
    memory_bytes: int | None = None

    @property
    def session_bytes(self) -> int | None:
        """Keys and values of a whole session; 0 where none are kept, None where it is not known."""
        if self.token_bytes == 0:
            return 0
        return None if self.token_bytes is None or self.context is None else self.token_bytes * self.context

    @property
    def needed_bytes(self) -> int:
        """The weights and one session, as far as they are known: less cannot be."""
        return (self.weights_bytes or 0) + (self.session_bytes or 0)

    @property
    def sessions(self) -> int | None:
        """The most sessions beside the weights; None without a budget, a cache or what it takes to know."""
        if self.memory_bytes is None or self.weights_bytes is None or not self.session_bytes:
            return None
        return max(self.memory_bytes - self.weights_bytes, 0) // self.session_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the weights and a session do; None where no memory is stated, or too little is known."""
        if self.memory_bytes is None:
            return None
        if self.needed_bytes > self.memory_bytes:
            return False
        return None if self.weights_bytes is None or self.session_bytes is None else True

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {
            "weights_bytes": self.weights_bytes,
            "measured": self.measured,
            "token_bytes": self.token_bytes,
            "context": self.context,
            "session_bytes": self.session_bytes,
            "memory_bytes": self.memory_bytes,
            "sessions": self.sessions,
            "fits": self.fits,
        }


def budgets(
    plan: Mapping[str, Planned], todo: Collection[str], store: Store, stated: Mapping[str, Mapping[str, Any]]
) -> dict[str, Budget]:
    """The budgets of the exports of a plan, by name.

    ``todo`` are the targets that are built, ``stated`` the ``budget:`` of each spec.
    """
    exports = [name for name, item in plan.items() if item.node.produces in EXPORTS]
    if not exports:
        return {}
    known, found = arithmetic(plan, todo, exports, store), {}
    for name in exports:
        item = plan[name]
        serving = known.stages[name].serving(known.of_role(item, "model"))
        if serving is not None:
            memory = _memory(item.node, stated.get(item.node.spec, {}))
            measured = None if name in todo else _measured(item)
            weights = serving.weights if measured is None else measured
            found[name] = Budget(weights, serving.token, serving.context, measured is not None, memory)
    return found


def _memory(node: Node, stated: Mapping[str, Any]) -> int | None:
    found = stated.get("targets", {}).get(node.target, stated.get("memory"))
    return None if found is None else int(found)


def _measured(item: Planned) -> int | None:
    """The bytes of an export that is at hand, by its own measure (files of a tokenizer beside it are no weights)."""
    metric = None if item.receipt is None else item.receipt["metrics"].get("bytes")
    return None if metric is None else int(metric["value"])
