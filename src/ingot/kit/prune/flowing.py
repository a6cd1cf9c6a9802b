"""Pruning as weights flow by: the weights of some modules lose what they must, and what is zero then is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ingot.errors import StageFailed
from ingot.kit import sparsity
from ingot.kit.prune.goals import Goal
from ingot.kit.stream.vocabulary import MapRows, Route, Slot, unchanged


@dataclass(frozen=True)
class Rule:
    """What happens to one module's weight, and what is to be seen of it afterwards.

    ``apply`` is given rows (all of them with ``whole``) and the number of the first. ``least`` is how many zeros the
    weight has in the end; where ``goal`` is a pattern, no block may hold more than it says.
    ``identity`` is that of its route (see ``Route``).
    """

    goal: Goal
    apply: Callable[[torch.Tensor, int], torch.Tensor]
    least: int
    whole: bool = False
    identity: str | None = None


@dataclass
class Pruning:
    """Applies ``rules``, by module. StageFailed (E-PRUNE-VERIFY) when the result is not what was asked for."""

    rules: Mapping[str, Rule]
    #: By module, as far as it has flowed by: how many weights are zero, and how many there are.
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Blocks that hold more than their pattern lets them: of what passed, none.
    crowded: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        module = slot.name.removesuffix(".weight")
        if slot.name == module or module not in self.rules:
            return [Route(slot, unchanged, identity="")]
        rule = self.rules[module]
        return [Route(slot, self._prune(module, rule), whole=rule.whole, identity=rule.identity)]

    def finish(self) -> None:
        """See ``Transform``: every module has come, with as many zeros as were asked for."""
        missing = [module for module in self.rules if module not in self.counts]
        if missing:
            raise StageFailed("E-PRUNE-VERIFY", f"{missing[0]!r} never came", facts=[f"{len(missing)} missing"])
        for module, rule in self.rules.items():
            zeros, total = self.counts[module]
            if zeros < rule.least:
                raise _short(f"{module!r} has fewer zeros than asked for", f"{zeros} of {total}, not {rule.least}")
        if self.crowded:
            raise _short("blocks hold more weights than their pattern lets them", f"{self.crowded} blocks")

    def _prune(self, module: str, rule: Rule) -> MapRows:
        def prune(rows: torch.Tensor, start: int) -> torch.Tensor:
            pruned = rule.apply(rows, start)
            zeros, crowded = sparsity.zeros(pruned), 0
            if rule.goal.block:
                crowded = sparsity.crowded(pruned, rule.goal.keep, rule.goal.block)
            with self._lock:
                self.crowded += crowded
                before = self.counts.get(module, (0, 0))
                self.counts[module] = before[0] + zeros, before[1] + pruned.numel()
            return pruned

        return prune


def _short(what: str, fact: str) -> StageFailed:
    return StageFailed("E-PRUNE-VERIFY", what, facts=[fact])
