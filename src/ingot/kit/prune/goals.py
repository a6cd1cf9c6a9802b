"""What each module is to lose: names of a spec resolved against the modules that a model has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingot.core.stage import Frozen
from ingot.errors import RefusedInput
from ingot.kit.lora.modules import kinds_of
from ingot.kit.naming import RULE, means

#: Parts of a module's name by which it belongs to a group.
_PARTS: Mapping[str, frozenset[str]] = {
    "attention": frozenset({"self_attn", "attn", "attention", "self_attention"}),
    "feed_forward": frozenset({"mlp", "ffn", "feed_forward", "block_sparse_moe", "moe"}),
    "embeddings": frozenset({"embed_tokens", "wte", "lm_head", "embed_out"}),
}
EMBEDDINGS = "embeddings"
ALL_LINEAR = "all-linear"
GROUPS = (ALL_LINEAR, *_PARTS)


class Goal(Frozen):
    """A share of the weights that become zero, or (``block`` > 0) at most ``keep`` of every ``block`` that stay."""

    share: float = 0.0
    keep: int = 0
    block: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is lost."""
        return not self.block and not self.share

    def to_dict(self) -> dict[str, object]:
        """As it stands in prune.json."""
        return {"pattern": f"{self.keep}:{self.block}"} if self.block else {"sparsity": self.share}

    def least(self, rows: int, columns: int, *, by_row: bool) -> int:
        """How many zeros a matrix of this shape has at least: a share is rounded, of each row or of the whole."""
        if self.block:
            return rows * (columns // self.block) * (self.block - self.keep)
        return rows * round(self.share * columns) if by_row else round(self.share * rows * columns)


@dataclass(frozen=True)
class Prunable:
    """The modules of a model that have a matrix to prune, in its order; a tied output embedding is not among them."""

    linear: tuple[str, ...]
    embeddings: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Linear layers, then embeddings."""
        return (*self.linear, *self.embeddings)

    def group(self, module: str) -> str:
        """``attention``, ``feed_forward``, ``embeddings``, or ``other``."""
        if module in self.embeddings:
            return EMBEDDINGS
        parts = set(module.split("."))
        return next((group for group, known in _PARTS.items() if parts & known), "other")


def resolve(prunable: Prunable, wanted: Mapping[str, Goal]) -> dict[str, Goal]:
    """The goal of each module that ``wanted`` names, in the model's order; modules that nothing names are left out.

    The most specific entry decides, whatever the order: a full name before parts of one and globs (of which the one
    of more words), these before ``attention``, ``feed_forward`` and ``embeddings``, and these before ``all-linear``.
    RefusedInput (E-PRUNE-MODULES): an entry matches nothing, or two as specific ones want something else.
    """
    unknown = [name for name in wanted if not any(_rank(prunable, module, name) for module in prunable.all)]
    if unknown:
        raise _nothing(prunable, unknown)
    goals = {module: _goal(prunable, module, wanted) for module in prunable.all}
    found = {module: goal for module, goal in goals.items() if goal is not None and not goal.empty}
    if not found:
        raise RefusedInput(
            "E-PRUNE-MODULES",
            "no module is to lose a weight",
            facts=[f"{name}: {goal.to_dict()}" for name, goal in sorted(wanted.items())][:8],
            hint="give at least one of them a share above 0",
        )
    return found


def _goal(prunable: Prunable, module: str, wanted: Mapping[str, Goal]) -> Goal | None:
    ranks = {name: _rank(prunable, module, name) for name in wanted}
    best = max(ranks.values(), default=0)
    if not best:
        return None
    names = sorted(name for name, rank in ranks.items() if rank == best)
    goals = [wanted[name] for name in names]
    if any(goal != goals[0] for goal in goals):
        raise RefusedInput(
            "E-PRUNE-MODULES",
            f"{module!r} is named twice, with different goals",
            facts=[f"{name}: {goal.to_dict()}" for name, goal in zip(names, goals, strict=True)],
            hint="give the module its full name where one of them is to win",
        )
    return goals[0]


def _rank(prunable: Prunable, module: str, name: str) -> int:
    """How specific ``name`` is about the module; 0 where it is not meant."""
    if name == ALL_LINEAR:
        return int(module in prunable.linear)
    if name in _PARTS:
        return 2 * (prunable.group(module) == name)
    if module == name:
        return 1 << 16
    return (3 + name.count(".")) * means(name, module)


def _nothing(prunable: Prunable, unknown: Sequence[str]) -> RefusedInput:
    groups = [group for group in GROUPS if any(_rank(prunable, module, group) for module in prunable.all)]
    return RefusedInput(
        "E-PRUNE-MODULES",
        f"no module that can be pruned is named {', '.join(unknown)}",
        facts=[
            f"groups: {', '.join(groups) or 'none'}",
            f"linear layers: {', '.join(kinds_of(prunable.linear)) or 'none'}",
            f"embeddings: {', '.join(prunable.embeddings) or 'none'}",
        ],
        hint=f"name a group, {RULE}",
    )
