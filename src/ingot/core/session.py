"""One run of ``doit``: what was decided for each target, what came of it, and who listens.

doit asks ``up_to_date`` for each target after its inputs ran, and calls ``execute`` for those that are not. The
live view listens to the messages of running stages and reads the outcomes at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ingot.core import checkpoints, eviction, key_locks
from ingot.core.build import Builder, Built, Listener
from ingot.core.gates import Verdict
from ingot.core.gitinfo import git_state
from ingot.core.graph import Node
from ingot.core.passes import Wish
from ingot.core.plan import Planned
from ingot.core.project import Project
from ingot.errors import DiskFailed, GateFailed, IngotError

if TYPE_CHECKING:
    from ingot.core.predict import Prediction
    from ingot.core.reasons import Reason


class Session:
    """The state of one run over one project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.planned: dict[str, Planned] = {}
        self.outcomes: dict[str, Built] = {}
        self.verdicts: dict[str, list[Verdict]] = {}
        self.listeners: list[Listener] = []
        #: Targets that were built, and whose gates do not pass: the run goes on and ends with exit code 1.
        self.broken: dict[str, GateFailed] = {}
        #: Targets of this run, in the order in which doit will visit them; None until the run starts.
        self.selected: tuple[str, ...] | None = None
        self._force, self._parallel = False, 1
        #: Why this run was not started: something is lacking, or there is no room for it.
        self.refused: IngotError | None = None
        self._wanted: dict[str, tuple[Reason, ...]] | None = None
        self._predictions: Mapping[str, Prediction | None] = {}
        self._builder = Builder(project, self._tell)
        self._checked = False
        self._said_fresh: set[str] = set()
        #: Targets that failed: no pass takes them along again.
        self._failed: set[str] = set()
        #: doit itself does not say whether it runs with ``-a``; executing what is up to date shows it too.
        self._always = False
        self._lock = threading.Lock()

    def begin(self, *, force: bool, parallel: int, always: bool) -> None:
        """Say how this run goes: although it will not fit (``force``), how many targets at a time, and all of them."""
        self._force, self._parallel, self._always = force, parallel, always
        # A command may run several times in one process: each run has a screen, and asks again what is lacking.
        self.listeners.clear()
        self.broken.clear()
        self._checked, self.refused, self._wanted = False, None, None

    def _tell(self, target: str, message: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(target, message)

    def up_to_date(self, name: str) -> bool:
        """Whether nothing at all is to be done for a target: its result is in force and its gates pass."""
        node = self.project.nodes[name]
        planned = self.project.check(node)
        self.planned[name] = planned
        if planned.state == "virtual":
            return self._is_left(planned)
        if planned.state == "evicted":
            if name not in self.wanted:
                return self._is_in_force(name, Built("fresh", planned.receipt or {}))
            self.planned[name] = replace(planned, reasons=self.wanted[name])
        if planned.state != "fresh" or planned.restored or not self._linked(planned) or name in self._builder.taken:
            return False
        assert planned.receipt is not None
        return self._is_in_force(name, Built("fresh", planned.receipt))

    @property
    def wanted(self) -> dict[str, tuple[Reason, ...]]:
        """The evicted results, by id, whose bytes this run needs as far as its plan can tell, and for what."""
        if self._wanted is None:
            chosen = self.project.nodes.keys() if self.selected is None else set(self.selected)
            known = [node for node in self.project.nodes.values() if node.id in chosen]
            self._wanted = eviction.wanted(self.project.planner.plan(self.project.with_inputs(known)))
        return self._wanted

    def _is_left(self, planned: Planned) -> bool:
        """Whether nothing is to be done for a virtual target: what flows is the work of what is built from it."""
        node = planned.node
        if planned.restored or planned.presence == "damaged" or self.project.store.is_linked(node.spec, node.name):
            return False
        # Of what nobody has seen nothing is measured that a gate could judge: it is judged once it has flowed by.
        return planned.receipt is None or self._is_in_force(node.id, Built("virtual", planned.receipt))

    def _is_in_force(self, name: str, built: Built) -> bool:
        node = self.project.nodes[name]
        self.outcomes[name] = built
        verdicts = self.project.judge(node)
        self.verdicts[name] = verdicts
        if not all(verdict.passed for verdict in verdicts):
            return False
        # What only warns stops nothing, so nothing will be executed that could record it.
        self.project.record_failures(node, verdicts)
        self._said_fresh.add(name)
        return True

    def _linked(self, planned: Planned) -> bool:
        return self.project.store.has_latest(planned.node.spec, planned.node.name, str(planned.digest))

    def execute(self, name: str) -> None:
        """Build a target (or take a result that is at hand), then judge its gates. Raises IngotError."""
        # Executed although it was said to be fresh: ``doit -a`` wants this target built again, and all after it.
        self._always |= name in self._said_fresh
        planned = self.planned.get(name) or self.project.check(self.project.nodes[name])
        if (planned.state != "fresh" or self._always) and not self._rests(planned):
            self._require_everything()
        try:
            built = self._built(name, planned)
        except BaseException:
            self._failed.add(name)
            raise
        if planned.state == "virtual" and not built.receipt:
            return
        self.project.current[name] = built.receipt
        self.outcomes[name] = built
        for receipt in built.streamed:
            self.outcomes[str(receipt["target"])] = Built("streamed", receipt)
        self._judge(name, *(str(receipt["target"]) for receipt in built.streamed))

    def _rests(self, planned: Planned) -> bool:
        """Whether nothing is to be built for a target although its bytes are not here."""
        return planned.state == "virtual" or (planned.state == "evicted" and planned.node.id not in self.wanted)

    def _built(self, name: str, planned: Planned) -> Built:
        """What comes of a target: perhaps a pass for another one has built it already."""
        if planned.state == "evicted" and self._rests(planned) and not self._always:
            return self._builder.leave_evicted(planned)
        wish = Wish(self._always, self._siblings(planned.node), self._predictions)
        taken = self._builder.taken.get(name)
        built = self._builder.ensure(planned, wish) if taken is None else taken
        # A pass may have built it while this one waited for its lock.
        return self._builder.taken.get(name, built)

    def _siblings(self, node: Node) -> tuple[Node, ...]:
        """The other instances of a target that this run builds too, and that one pass could build with it."""
        if not node.one_pass or node.sources:
            return ()
        chosen = self.selected if self.selected is not None else tuple(self.project.nodes)
        over = self.outcomes.keys() | self._failed | {node.id}
        others = [self.project.nodes[name] for name in chosen if name in self.project.nodes and name not in over]
        return tuple(it for it in others if (it.spec, it.target, it.inputs) == (node.spec, node.target, node.inputs))

    def _require_everything(self) -> None:
        """Before the first stage starts, name what is lacking, what could not be recorded, and what will not fit."""
        with self._lock:
            if not self._checked:
                names = self.selected if self.selected is not None else tuple(self.project.nodes)
                known = [name for name in names if name in self.project.nodes]
                if self.refused is not None:
                    # With ``-c`` or ``-n`` others ask too: it was said at length once.
                    raise type(self.refused)(self.refused.code, f"not started: {self.refused.what}")
                try:
                    self._foresee(self.project.require_everything(known, force=self._always), known)
                except IngotError as error:
                    self.refused = error
                    raise
                # The state of the project is that from which is built, not that after an hour.
                git_state(self.project.root)
                self._checked = True

    def _foresee(self, plan: Mapping[str, Planned], names: Sequence[str]) -> None:
        """Predict what this run will take; WillNotFit (E-SPACE, E-MEMORY) for what there is no room for."""
        # Imported with the first target that is built: most runs build nothing.
        from ingot.core.forecast import forecast

        found = forecast(self.project, plan, names, parallel=self._parallel, always=self._always)
        refusal = None if self._force else found.refusal()
        if refusal is not None:
            raise refusal
        self._predictions = found.predictions

    def _judge(self, name: str, *streamed: str) -> None:
        """Judge the gates of a target, and of the virtual ones that flowed into it: they were measured with it."""
        verdicts = []
        for each in (name, *streamed):
            node = self.project.nodes[each]
            self.verdicts[each] = self.project.judge(node)
            self.project.record_failures(node, self.verdicts[each])
            verdicts += self.verdicts[each]
        bad = [verdict for verdict in verdicts if not verdict.passed]
        if bad:
            code = "E-GATE" if any(verdict.passed is False for verdict in bad) else "E-GATE-UNKNOWN"
            names = [each for each in (name, *streamed) if not all(it.passed for it in self.verdicts[each])]
            what = f"{len(bad)} of {len(verdicts)} gates of {' and '.join(names)} do not pass"
            raise GateFailed(
                code,
                what,
                facts=[str(verdict) for verdict in bad],
                hint="the measurements are published; a gate only judges them",
            )

    def _settle(self) -> None:
        """Make read-only what was evicted and has come back, where whoever brought it was killed before he did."""
        store = self.project.store
        if store.returned():
            with key_locks.living(store.root):
                for digest in store.returned():
                    store.settle(digest)

    def close(self) -> None:
        """Keep what is derived and end the helpers."""
        self._builder.close()
        try:
            # At the end of a process nobody can be told, and nothing is lost that cannot be derived again.
            with suppress(DiskFailed):
                self.project.save()
                # What dead builds left is dropped by a run that builds nothing too: it may be gigabytes.
                self.project.store.sweep_staging()
                self._settle()
                checkpoints.sweep(self.project.store.root, self.project.built_here)
        finally:
            self.project.executor.close()
