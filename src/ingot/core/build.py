"""Build targets: lock their keys, run their stage in a child, publish what it wrote, record what was measured.

Order (the commit is the registry's checkpoint): objects durable → log lines → checkpoint → results, links, index.
A failed stage publishes nothing, is remembered nowhere, and leaves its log. Mostly one target is built at a time; stale
instances of one target that differ in parameters alone are built in one pass where their kind can, and what is virtual
flows into it: all of it is recorded in one commit, what flowed before what was made of it.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ingot.core import checkpoints, disk, key_locks, passes, receipts, reuse
from ingot.core.copies import Copies, Copy
from ingot.core.digest import FileRecord
from ingot.core.executor import Outcome
from ingot.core.graph import Node, input_ids
from ingot.core.job import Job, Jobs
from ingot.core.passes import AS_IT_IS, Made, Pass, Wish
from ingot.core.plan import Planned
from ingot.core.stage_log import named
from ingot.core.staging import Staging, Watch
from ingot.core.statement import build_statement, decision_statement
from ingot.core.sweep import Forbidden, sweep, sweep_text
from ingot.errors import RefusedInput, StageFailed, StoreDamaged

if TYPE_CHECKING:
    from ingot.core.project import Project

Fate = Literal["fresh", "built", "restored", "virtual", "streamed"]

#: Receives (target id, message) while a stage runs: ``progress``, ``phase`` and ``waiting`` messages.
Listener = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Built:
    """The end of one target: how it came to be, its receipt, and the receipts of what flowed into it."""

    fate: Fate
    receipt: Mapping[str, Any]
    streamed: tuple[Mapping[str, Any], ...] = ()


class Builder:
    """Builds targets of one project; used from several threads, one target each."""

    def __init__(self, project: Project, listener: Listener) -> None:
        self._project = project
        self._listener = listener
        self._copies = Copies()
        self._jobs = Jobs(project, self._copies.folder)
        self._living, self._alive = threading.Lock(), ExitStack()
        self._is_alive = False
        #: What a pass built beside the target that it was begun for, by id.
        self.taken: dict[str, Built] = {}

    def close(self) -> None:
        """Drop the scratch copies, and let ``gc`` in again."""
        self._copies.close()
        self._alive.close()

    def _live(self) -> None:
        """From the first build on until the end: nothing is taken out of the store that this run relies on."""
        with self._living:
            if not self._is_alive:
                self._alive.enter_context(key_locks.living(self._project.store.root))
                self._is_alive = True

    def ensure(self, planned: Planned, wish: Wish = AS_IT_IS) -> Built:
        """Bring one target up to date whose inputs are."""
        if planned.state == "virtual":
            return self._leave_virtual(planned)
        if planned.state == "fresh" and not planned.restored and not wish.force:
            return self._select(planned)
        self._live()
        self._bring_back(planned.node)
        while True:
            group = self._group(planned, wish)
            with self._locked(group):
                # Another process may have built or selected it while this one waited, or died before its commit was
                # over: what it built is recorded then, and is not to be built and recorded once more.
                self._project.require_recordable()
                again = self._project.check(planned.node)
                if again.state == "fresh" and not wish.force:
                    return self._select(again)
                now, missing = self._group(again, wish), self._lacking(planned.node)
                # What flows in may have got a digest meanwhile, and the target another key with it.
                if not missing and {item.key for item in now} <= {item.key for item in group}:
                    return self._build(now, wish)
                for name in missing:
                    self._copy(planned.node, name)
            planned = again

    def _group(self, planned: Planned, wish: Wish) -> list[Planned]:
        """The target, and those of its siblings that are stale too and differ from it in parameters alone."""
        found = [planned]
        for node in wish.siblings:
            item = self._project.check(node)
            if (item.state == "stale" or wish.force) and passes.alike(planned, item):
                found.append(item)
        return found

    def _locked(self, group: Sequence[Planned]) -> AbstractContextManager[None]:
        name = group[0].node.id
        keys = [str(item.key) for item in group]
        return key_locks.held(
            self._project.store.root, keys, lambda why: self._listener(name, {"t": "waiting", "name": why})
        )

    @contextmanager
    def beside(self, planned: Planned) -> Iterator[tuple[dict[str, Any], Path]]:
        """Build what a target is once more, beside what is there: its receipt, and the folder while one looks at it.

        Nothing is published or recorded, and nothing is taken over from an earlier result.
        """
        node = planned.node
        self._live()
        self._bring_back(node)
        with self._locked([planned]):
            for name in self._lacking(node):
                self._copy(node, name)
            with self._project.store.staging() as staging:
                log = self._log(node)
                wish = Wish(force=True)
                made = self._run_pass(Pass([planned], wish, self._project.store.measure, node.id), staging, log)
                with suppress(OSError):
                    log.unlink(missing_ok=True)
                yield made.receipts[0], staging.out

    def _bring_back(self, node: Node) -> None:
        """Build the inputs whose bytes were evicted, where the plan did not foresee that they are needed."""
        for name in dict.fromkeys(input_ids(node)):
            below = self._project.nodes[name]
            if below.virtual:
                self._bring_back(below)
                continue
            item = self._project.check(below)
            if item.state == "evicted":
                self._listener(node.id, {"t": "phase", "name": f"build {below.name} again, whose bytes were evicted"})
                self._project.current[name] = self.ensure(item).receipt

    def leave_evicted(self, planned: Planned) -> Built:
        """Nothing needs the bytes of an evicted result: it stays in force, and no link leads to it."""
        assert planned.receipt is not None
        self._project.store.unlink_latest(planned.node.spec, planned.node.name)
        return Built("fresh", planned.receipt)

    def _select(self, planned: Planned) -> Built:
        assert planned.receipt is not None
        receipt = planned.receipt
        if planned.restored:
            self._record_selected(planned.node, str(receipt["key"]), str(receipt["digest"]))
        self._publish_view(planned.node, str(receipt["digest"]))
        return Built("restored" if planned.restored else "fresh", receipt)

    def _leave_virtual(self, planned: Planned) -> Built:
        """A virtual target is not built: what is known of it is put in its place, and no link leads to older bytes."""
        node, store, receipt = planned.node, self._project.store, planned.receipt
        store.unlink_latest(node.spec, node.name)
        if receipt is None:
            return Built("virtual", {})
        if planned.presence == "damaged":
            store.quarantine(str(receipt["digest"]), receipt["files"])
        if planned.restored:
            self._record_selected(node, str(receipt["key"]), str(receipt["digest"]))
        return Built("restored" if planned.restored else "virtual", receipt)

    def _record_selected(self, node: Node, key: str, digest: str) -> None:
        fields = {"target": node.id, "spec": node.spec, "key": key, "digest": digest}
        time_of_day = self._project.index.time_to_select(node.id)
        self._project.record(decision_statement("selected", fields, time=time_of_day))

    def _build(self, group: Sequence[Planned], wish: Wish) -> Built:
        """Build these targets in one pass, publish each, and record all in one commit."""
        project = self._project
        for item in group:
            if item.presence == "damaged" and item.receipt is not None:
                project.store.quarantine(str(item.receipt["digest"]), item.receipt["files"])
        # Publishing takes the marks of evicted results away.
        gone = {item.digest for item in group if item.digest and project.store.is_evicted(item.digest)}
        log = self._log(group[0].node)
        with project.store.staging() as staging, self._resuming(group, staging) as (kept, left):
            what = Pass(group, wish, project.store.publish, group[0].node.id, kept, left)
            made = self._run_pass(what, staging, log)
        for item, receipt in zip(group, made.receipts, strict=True):
            receipt.update(receipts.observed(item, receipt, evicted=item.digest in gone))
        flowed = self._new_flows(made.flowed, wish)
        self._record([*flowed, *made.receipts])
        if kept is not None:
            checkpoints.drop(project.store.root, str(group[0].key))
        found = [Built("built", receipt) for receipt in made.receipts]
        found[0] = replace(found[0], streamed=tuple(flowed))
        for item, built in zip(group, found, strict=True):
            project.store.remember(item.node.id)
            self._publish_view(item.node, str(built.receipt["digest"]))
        for item, built in zip(group[1:], found[1:], strict=True):
            self.taken[item.node.id] = built
        with suppress(OSError):
            # The build is recorded; a log too many harms nobody.
            log.unlink(missing_ok=True)
        return found[0]

    def _resuming(self, group: Sequence[Planned], staging: Staging) -> AbstractContextManager[tuple[Path | None, int]]:
        """The folder of checkpoints for a kind that resumes, and how many are there.

        Several targets that are built in one pass are under several keys, and such a pass begins anew.
        """
        first, project = group[0], self._project
        if not first.node.resumes or group[1:]:
            return nullcontext((None, 0))
        key = str(first.key)
        return checkpoints.attempt(project.store.root, key, project.built_here(key), staging, first.node.id)

    def _log(self, node: Node) -> Path:
        log = self._project.log_path(node)
        disk.make_dirs(log.parent)
        log.unlink(missing_ok=True)
        return log

    def _run_pass(self, what: Pass, staging: Staging, log: Path) -> Made:
        """Run the stage and keep what it wrote; the receipts, not yet recorded."""
        project, ids = self._project, [item.node.id for item in what.group]
        job = self._jobs.make(what.group, staging)
        reuse.offer(project, what.group, job)
        if what.checkpoints is not None:
            job.data.update(checkpoints=str(what.checkpoints), key=str(what.group[0].key))
        found = [receipts.begun(project, item, job) for item in what.group]
        for receipt in found:
            receipt.update(passes.predicted(what, receipt["target"]))
            receipt.update({"shared_with": [name for name in ids if name != receipt["target"]]} if ids[1:] else {})
            receipts.refuse_too_large(receipt)
        with named(log, project.root):
            with self._blamed(what.group[0].node, job):
                shared, outcome = self._run(what, job.data, log, staging)
            self._jobs.check_unchanged(what.group[0].node, job.flows)
            results = [outcome.of(number) for number in range(len(ids))]
            flowed = receipts.passed(project, job, results, shared, ids)
            for number, (item, receipt) in enumerate(zip(what.group, found, strict=True)):
                receipt.update(shared | {"metrics": results[number]["metrics"]} | receipts.told(results[number]))
                receipt["metrics"] = {**project.cost_of(item.node, receipt), **receipt["metrics"]}
                receipt.update(receipts.with_digests(project, item, job.flows, flowed.all))
            # Before anything is published: an object that no entry can name would be rubbish.
            for receipt in [*found, *flowed.measured.values()]:
                receipts.refuse_too_large(receipt)
            self._sweep([*found, *flowed.measured.values()], what, staging)
            for number, receipt in enumerate(found):
                hashed = [FileRecord(**record) for record in results[number].get("files", ())]
                digest, records = what.keep(staging.part(number), hashed)
                receipt.update({"digest": digest, "files": [record.to_dict() for record in records]})
        return Made(found, list(flowed.measured.values()))

    def _new_flows(self, flowed: Sequence[dict[str, Any]], wish: Wish) -> list[dict[str, Any]]:
        """What is to be recorded of what flowed: what nobody knew, what came out differently, what was asked for."""
        return [it for it in flowed if wish.force or "observed" not in it or not it["observed"]["agrees"]]

    def _record(self, found: Sequence[dict[str, Any]]) -> None:
        """Record these builds in one commit; each receipt gets its place."""
        project = self._project
        store = project.registry.store_evidence
        for receipt in found:
            receipts.file_evidence(receipt, store)
        statements = [build_statement(receipt, store) for receipt in found]
        places = project.record_all(statements) if statements[1:] else [project.record(statements[0])]
        for receipt, place in zip(found, places, strict=True):
            receipt.update(place)
            name, key, digest = str(receipt["target"]), str(receipt["key"]), str(receipt["digest"])
            newest = project.index.latest[name]
            if (newest["origin"], newest["index"]) != (place["origin"], place["index"]):
                # Another log's entry bears a time to come: say that this result is in force, or every run would.
                self._record_selected(project.nodes[name], key, digest)
            project.take(receipt)

    def _lacking(self, node: Node) -> list[str]:
        """The virtual targets, by id, that must be written for a while before this one can be built."""
        return [name for name in self._jobs.to_copy(node) if name not in self._copies]

    def _copy(self, reader: Node, name: str) -> None:
        """Write a virtual target into scratch; it is measured on the way, and that recorded where it is news."""
        project = self._project
        with self._copies.alone(), ExitStack() as stack:
            item = project.check(project.nodes[name])
            if item.state != "virtual" or name in self._copies:
                return
            for below in self._lacking(item.node):
                self._copy(reader, below)
            self._listener(reader.id, {"t": "phase", "name": f"write a scratch copy of {item.node.name}"})
            staging = stack.enter_context(project.store.staging())
            log = self._log(item.node)
            made = self._run_pass(Pass([item], AS_IT_IS, project.store.measure, reader.id), staging, log)
            (receipt,) = made.receipts
            receipt |= {"stored": False} | receipts.observed(item, receipt)
            if "observed" not in receipt or not receipt["observed"]["agrees"]:
                self._record([*self._new_flows(made.flowed, AS_IT_IS), receipt])
            with suppress(OSError):
                log.unlink(missing_ok=True)
            self._copies.put(name, Copy(staging.out, receipt["files"]), stack.pop_all())

    def _run(self, what: Pass, job: dict[str, Any], log: Path, staging: Staging) -> tuple[dict[str, Any], Outcome]:
        """Run the stage; the fields of a receipt that all results of the pass share, and what the stage gave."""
        source_bytes = staging.source_bytes(what.group[0].node.sources)
        started, clock = _now(), time.monotonic()
        with Watch(staging, what.checkpoints) as beside:
            outcome = self._project.executor.run(
                job, log, staging.lock_fd, lambda message: self._listener(what.told, message)
            )
        wall = time.monotonic() - clock
        shared = {
            "environment": receipts.environment_of(job, outcome.network),
            "timings": {
                "started": started,
                "finished": _now(),
                "wall_s": round(wall, 3),
                "cpu_s": round(outcome.cpu_s, 3),
                "peak_anon_bytes": outcome.peak_anon,
                "peak_rss_bytes": outcome.peak_rss,
                "peak_scratch_bytes": beside.most,
                "source_bytes": source_bytes,
                **receipts.of_devices(outcome),
                **({"resumed_checkpoints": what.found} if what.found else {}),
            },
        }
        return shared, outcome

    def _sweep(self, found: Sequence[Mapping[str, Any]], what: Pass, staging: Staging) -> None:
        """Refuse receipts and outputs that must not be published (``sweep``)."""
        forbidden = Forbidden.here(staging.root, self._project.root)
        for receipt in found:
            sweep_text(json.dumps(receipt, ensure_ascii=False), forbidden)
        for number, item in enumerate(what.group):
            out = staging.part(number).out
            # What is no folder is refused where it would be published.
            if out.is_dir() and not out.is_symlink():
                with disk.explained(out):
                    sweep(out, item.node.kind, forbidden)

    @contextmanager
    def _blamed(self, node: Node, job: Job) -> Iterator[None]:
        """What a stage reads as a stream it verifies itself, at the end of its read: when it fails, that may be why."""
        try:
            yield
        except (RefusedInput, StageFailed, StoreDamaged) as error:
            # A stage that was killed read nothing wrong, and whoever interrupted it waits.
            if error.code not in ("E-STAGE-KILLED", "E-STAGE-DIED"):
                self._jobs.verify_streamed(node, job.flows)
            raise

    def _publish_view(self, node: Node, digest: str) -> None:
        self._project.store.link_latest(node.spec, node.name, digest)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
