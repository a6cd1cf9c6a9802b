"""Pruning as weights flow by: the weights of some modules are masked, and what is zero then is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ingot.errors import StageFailed
from ingot.kit import sparsity
from ingot.kit.stream.vocabulary import MapRows, Route, Slot, unchanged


@dataclass(frozen=True)
class Rule:
    """Which weights go, and what is to be seen of it afterwards.

    ``mask`` is told a module and rows of its weight, all of them with ``whole`` (True: drop). ``short`` says of the
    rows as they were pruned whether fewer are zero than should be. ``identity`` is that of its routes (see ``Route``).
    """

    mask: Callable[[str, torch.Tensor], torch.Tensor]
    short: Callable[[torch.Tensor], bool]
    whole: bool
    identity: str | None = None


@dataclass
class Pruning:
    """Sets weights of ``modules`` to zero. StageFailed (E-PRUNE-VERIFY) when that is not what was asked for."""

    modules: Sequence[str]
    rule: Rule
    #: By module, as far as it has flowed by: how many weights are zero, and how many there are.
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        module = slot.name.removesuffix(".weight")
        if slot.name == module or module not in self.modules:
            return [Route(slot, unchanged, identity="")]
        return [Route(slot, self._prune(module), whole=self.rule.whole, identity=self.rule.identity)]

    def finish(self) -> None:
        """See ``Transform``: every module has come."""
        missing = [module for module in self.modules if module not in self.counts]
        if missing:
            raise StageFailed("E-PRUNE-VERIFY", f"{missing[0]!r} never came", facts=[f"{len(missing)} missing"])

    def _prune(self, module: str) -> MapRows:
        def prune(rows: torch.Tensor, _start: int) -> torch.Tensor:
            pruned = sparsity.dropped(rows, self.rule.mask(module, rows))
            zeros = sparsity.zeros(pruned)
            if self.rule.short(pruned):
                raise StageFailed(
                    "E-PRUNE-VERIFY",
                    f"{module!r} has fewer zeros than asked for",
                    facts=[f"zeros {zeros} of {pruned.numel()}"],
                )
            with self._lock:
                before = self.counts.get(module, (0, 0))
                self.counts[module] = before[0] + zeros, before[1] + pruned.numel()
            return pruned

        return prune
