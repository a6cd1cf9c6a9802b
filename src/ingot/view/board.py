"""What has come of each target of a run so far: the state that every screen shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from ingot.view.running import Running
from ingot.view.text import Line, clock, join

Fate = Literal["fresh", "built", "restored", "virtual", "streamed", "failed", "skipped"]
_STYLES: Mapping[Fate, str] = {
    "fresh": "dim",
    "virtual": "dim",
    "built": "green",
    "streamed": "green",
    "restored": "cyan",
    "failed": "red",
    "skipped": "yellow",
}


class Board:
    """Thread-safe: messages of stages arrive on the threads that build them."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.targets: tuple[str, ...] = ()
        self.fates: dict[str, Fate] = {}
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, kind: str, reason: str) -> Running:
        """A target starts."""
        item = Running(name, kind, time.monotonic(), reason)
        with self._lock:
            self._running[name] = item
        return item

    def hear(self, name: str, message: Mapping[str, Any]) -> None:
        """A message of a running stage; that of any other is dropped."""
        with self._lock:
            item = self._running.get(name)
            if item is not None:
                item.hear(message, time.monotonic())

    def end(self, name: str, fate: Fate) -> Running | None:
        """A target has ended; gives what was known of it while it ran."""
        with self._lock:
            self.fates[name] = fate
            return self._running.pop(name, None)

    def running(self) -> list[Running]:
        """The running targets in the order of their start."""
        with self._lock:
            return list(self._running.values())

    def count(self, fate: Fate) -> int:
        """How many targets ended so."""
        return sum(1 for each in self.fates.values() if each == fate)

    def names(self, *fates: Fate) -> list[str]:
        """The targets that ended so, in the order of the run."""
        known = dict.fromkeys((*self.targets, *self.fates))
        return [name for name in known if self.fates.get(name) in fates]

    def to_go(self) -> int:
        """Targets of this run that have neither ended nor started."""
        with self._lock:
            return sum(1 for name in self.targets if name not in self.fates and name not in self._running)

    @property
    def short(self) -> bool:
        """Whether one spec is built alone, so that its name says nothing in a running line."""
        return len({name.partition(":")[0] for name in self.targets}) == 1

    def summary(self, now: float) -> Line:
        """``12 fresh, 2 built, 1 running, 5 to go, 3m 05s``."""
        parts: list[tuple[int, str, str]] = [(self.count(fate), fate, _STYLES[fate]) for fate in _STYLES]
        parts += [(len(self.running()), "running", "bold"), (self.to_go(), "to go", "")]
        shown = [[(f"{count} {word}", style)] for count, word, style in parts if count]
        return join([*shown, [(clock(now - self.started), "dim")]], ", ")

    def result(self) -> Line:
        """The end of the run: ``1 failed, 2 built, 3 fresh, 4 not looked at``."""
        order: tuple[Fate, ...] = ("failed", "skipped", "built", "streamed", "restored", "fresh", "virtual")
        parts = [[(f"{self.count(fate)} {fate}", _STYLES[fate])] for fate in order if self.count(fate)]
        left = self.to_go()
        return join([*parts, [(f"{left} not looked at", "yellow")] if left else []], ", ")
