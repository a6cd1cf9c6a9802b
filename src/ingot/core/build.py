"""Build one target: lock its key, run its stage in a child, publish what it wrote, record what was measured.

Order (the commit is the registry's checkpoint): object durable → log line → checkpoint → results, links, index.
A failed stage publishes nothing, is remembered nowhere, and leaves its log.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ingot.core import disk, locks
from ingot.core.gitinfo import git_state
from ingot.core.graph import Node
from ingot.core.key import key_of
from ingot.core.plan import Planned, input_ids
from ingot.core.redact import redact
from ingot.core.staging import Staging, Watch, bytes_below
from ingot.core.statement import MAX_LINE, build_statement, decision_statement
from ingot.core.sweep import Forbidden, sweep, sweep_text
from ingot.errors import IngotError, RefusedInput, StageFailed
from ingot.version import __version__

if TYPE_CHECKING:
    from ingot.core.predict import Prediction
    from ingot.core.project import Project

Fate = Literal["fresh", "built", "restored"]

#: Receives (target id, message) while a stage runs: ``progress``, ``phase`` and ``waiting`` messages.
Listener = Callable[[str, dict[str, Any]], None]


#: How much of a failed stage's output is shown with its error.
_TAIL_LINES, _TAIL_BYTES = 5, 4096
#: Less free space than this is none.
_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Built:
    """The end of one target: how it came to be, and its receipt."""

    fate: Fate
    receipt: Mapping[str, Any]


class Builder:
    """Builds targets of one project; used from several threads, one target each."""

    def __init__(self, project: Project, listener: Listener) -> None:
        self._project = project
        self._listener = listener

    def ensure(self, planned: Planned, *, force: bool = False, predicted: Prediction | None = None) -> Built:
        """Bring one target up to date whose inputs are. With ``force`` it is built although it is fresh.

        ``predicted`` is what was predicted of it when the run started, recorded with what was measured.
        """
        if planned.state == "fresh" and not planned.restored and not force:
            return self._select(planned)
        assert planned.key is not None
        with self._key_lock(planned):
            # Another process may have built or selected it while this one waited.
            again = self._project.check(planned.node)
            if again.state == "fresh" and not force:
                return self._select(again)
            return self._build(again, predicted)

    @contextmanager
    def _key_lock(self, planned: Planned) -> Iterator[None]:
        folder = self._project.store.root / "locks"
        disk.make_dirs(folder)

        def waiting(holder: locks.Holder | None) -> None:
            stopped = ", and is stopped" if holder is not None and holder.stopped else ""
            who = "" if holder is None else f": {holder}{stopped}"
            self._listener(planned.node.id, {"t": "waiting", "name": f"another ingot builds this target{who}"})

        with locks.held_for_long(folder / f"{planned.key}.lock", waiting):
            yield

    def _select(self, planned: Planned) -> Built:
        assert planned.receipt is not None
        receipt = planned.receipt
        if planned.restored:
            self._record_selected(planned.node, str(planned.key), str(receipt["digest"]))
        self._publish_view(planned.node, str(receipt["digest"]))
        return Built("restored" if planned.restored else "fresh", receipt)

    def _record_selected(self, node: Node, key: str, digest: str) -> None:
        fields = {"target": node.id, "spec": node.spec, "key": key, "digest": digest}
        time_of_day = self._project.index.time_to_select(node.id)
        self._project.record(decision_statement("selected", fields, time=time_of_day))

    def _build(self, planned: Planned, predicted: Prediction | None) -> Built:
        node, project = planned.node, self._project
        if planned.presence == "damaged" and planned.receipt is not None:
            project.store.quarantine(str(planned.receipt["digest"]), planned.receipt["files"])
        log = project.log_path(node)
        disk.make_dirs(log.parent)
        log.unlink(missing_ok=True)
        with project.store.staging() as staging:
            job = self._job(planned, staging)
            receipt = self._receipt(planned, job)
            if predicted is not None:
                receipt["predicted"] = predicted.to_dict()
            _refuse_too_large(receipt)
            with self._log_named(log):
                receipt |= self._run(node, job, log, staging)
                self._check_unchanged(node)
                # Before anything is published: an object that no entry can name would be rubbish.
                _refuse_too_large(receipt)
                self._sweep(node, receipt, staging)
                digest, records = project.store.publish(staging)
        receipt |= {"digest": digest, "files": [record.to_dict() for record in records]}
        # What was accepted was built under another key: this key has not been observed to give it.
        if planned.receipt is not None and planned.presence == "present" and "accepted" not in planned.receipt:
            receipt["observed"] = {"digest": planned.receipt["digest"], "agrees": planned.receipt["digest"] == digest}
        recorded = project.record(build_statement(receipt, project.registry.store_evidence))
        newest = project.index.latest[node.id]
        if (newest["origin"], newest["index"]) != (recorded["origin"], recorded["index"]):
            # Another log's entry bears a time to come: say that this result is in force, or every run would.
            self._record_selected(node, str(planned.key), digest)
        project.store.remember(node.id)
        self._publish_view(node, digest)
        with suppress(OSError):
            # The build is recorded; a log too many harms nobody.
            log.unlink(missing_ok=True)
        return Built("built", receipt | recorded)

    def _run(self, node: Node, job: dict[str, Any], log: Path, staging: Staging) -> dict[str, Any]:
        """Run the stage; what was measured, as fields of the receipt."""
        source_bytes = _source_bytes(node, staging)
        started, clock = _now(), time.monotonic()
        with Watch(staging) as beside:
            outcome = self._project.executor.run(
                job, log, staging.lock_fd, lambda message: self._listener(node.id, message)
            )
        wall = time.monotonic() - clock
        return {
            "metrics": outcome.metrics,
            "environment": _environment(job, outcome.network),
            "timings": {
                "started": started,
                "finished": _now(),
                "wall_s": round(wall, 3),
                "cpu_s": round(outcome.cpu_s, 3),
                "peak_anon_bytes": outcome.peak_anon,
                "peak_rss_bytes": outcome.peak_rss,
                "peak_scratch_bytes": beside.most,
                "source_bytes": source_bytes,
            },
        }

    def _sweep(self, node: Node, receipt: Mapping[str, Any], staging: Staging) -> None:
        """Refuse an output that must not be published (``sweep``)."""
        forbidden = Forbidden.here(staging.root, self._project.root)
        sweep_text(json.dumps(receipt, ensure_ascii=False), forbidden)
        # What is no folder is refused where it would be published.
        if staging.out.is_dir() and not staging.out.is_symlink():
            with disk.explained(staging.out):
                sweep(staging.out, node.kind, forbidden)

    @contextmanager
    def _log_named(self, log: Path) -> Iterator[None]:
        """Add where the stage's output lies to what fails, when there is any or the stage itself failed."""
        try:
            yield
        except IngotError as error:
            if isinstance(error, StageFailed) or _size(log):
                shown = f"log: {os.path.relpath(log, self._project.root)}"
                error.facts = (*error.facts, *_last_lines(log), *_no_room(log), shown)
            raise

    def _job(self, planned: Planned, staging: Staging) -> dict[str, Any]:
        node, project = planned.node, self._project
        sources = self._snapshot(planned, staging)
        inputs: dict[str, list[str]] = {}
        digests: dict[str, list[str]] = {}
        for role, names in node.inputs.items():
            receipts = [project.current[f"{node.spec}:{name}"] for name in names]
            inputs[role] = [str(self._input(receipt)) for receipt in receipts]
            digests[role] = [str(receipt["digest"]) for receipt in receipts]
        return {
            "kind": node.kind,
            "params": dict(node.params),
            "seed": node.seed,
            "threads": project.threads,
            "inputs": inputs,
            "digests": digests,
            "sources": [str(path) for path in sources],
            "out": str(staging.out),
            "scratch": str(staging.scratch),
            "network": node.network,
            "preload": [f"ingot.stages.{node.kind}", *node.preload],
        }

    def _input(self, receipt: Mapping[str, Any]) -> Path:
        return self._project.store.require(str(receipt["digest"]), receipt["files"])

    def _check_unchanged(self, node: Node) -> None:
        """Inputs were read before the stage began; what has another stat since is read again (E-OBJECT-DAMAGED)."""
        for name in input_ids(node):
            receipt = self._project.current[name]
            self._project.store.require(str(receipt["digest"]), receipt["files"], reread=False)

    def _snapshot(self, planned: Planned, staging: Staging) -> list[Path]:
        """Copy the sources and make sure that what was copied is what the key says (E-CHANGED)."""
        node, paths, digests = planned.node, [], []
        for index, (_pointer, source, base) in enumerate(node.sources):
            path, digest = self._project.sources.snapshot({**source, "base": base}, staging.sources / str(index))
            paths.append(path)
            digests.append(digest)
        parts = self._project.planner.parts(node, self._project.digests_of_inputs(node), tuple(digests))
        if key_of(parts) != planned.key:
            raise RefusedInput(
                "E-CHANGED",
                f"a source of {node.id} changed while it was being read",
                hint="run doit again",
            )
        return paths

    def _receipt(self, planned: Planned, job: Mapping[str, Any]) -> dict[str, Any]:
        """What is known before the stage runs; what it measures comes later."""
        node, project = planned.node, self._project
        inputs: dict[str, Any] = {}
        for role, names in node.inputs.items():
            listed = [
                {"target": f"{node.spec}:{name}", "digest": project.current[f"{node.spec}:{name}"]["digest"]}
                for name in names
            ]
            if listed:
                inputs[role] = listed[0] if role in node.single_roles else listed
        return {
            "type": "build",
            "target": node.id,
            "spec": node.spec,
            "spec_digest": project.spec_digest(node.spec),
            "kind": node.kind,
            "revision": node.revision,
            "reproducibility": node.reproducibility,
            "key": planned.key,
            "key_parts": planned.parts,
            "inputs": inputs,
            "metrics": {},
            "environment": _environment(job, "not isolated"),
            "timings": {"started": "", "finished": ""},
            "git": git_state(project.root),
        }

    def _publish_view(self, node: Node, digest: str) -> None:
        self._project.store.link_latest(node.spec, node.name, digest)


def _source_bytes(node: Node, staging: Staging) -> int:
    """Bytes of the project files in the snapshot, counted as ``SourceReader.size`` does."""
    return sum(
        bytes_below(staging.sources / str(index))
        for index, (_pointer, source, _base) in enumerate(node.sources)
        if not source.get("python_stdlib")
    )


def _environment(job: Mapping[str, Any], network: str) -> dict[str, Any]:
    return {
        "ingot": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": job["threads"],
        "network": network,
    }


def _refuse_too_large(receipt: Mapping[str, Any]) -> None:
    """RefusedInput (E-LEAF-SIZE) when the entry of a build would not fit in a line of the log, whatever its files."""
    if len(json.dumps(receipt)) < MAX_LINE // 4:
        # A statement repeats little of a receipt: it is nowhere near the limit.
        return
    nothing = "0" * 64
    try:
        build_statement({**receipt, "digest": nothing, "files_evidence": nothing})
    except RefusedInput as error:
        error.hint = "keep long texts in a file that the target reads, or split a target with hundreds of inputs in two"
        raise


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _no_room(log: Path) -> list[str]:
    """That the disk is full: a program may have failed for that, with no room left to say so."""
    try:
        free = shutil.disk_usage(log.parent).free
    except OSError:
        return []
    return [f"the disk of cache/ is full: {free // 1000} kB are free"] if free < _FULL_BYTES else []


def _last_lines(log: Path) -> list[str]:
    """The end of a failed stage's output, as a person would look at it first; nothing of a long traceback."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    if "Traceback (most recent call last)" in text:
        return []
    return [f"| {redact(line)[:200]}" for line in text.splitlines()[-_TAIL_LINES:] if line.strip()]


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
