"""Chains with virtual targets, built in this process: kinds as they are, with a few bytes for weights.

A target's artifact is one small file made of its parameters and of what its inputs hold, whether that lies in folders
or flows in. So what is streamed, copied, materialized or built in one pass can be compared byte for byte in no time;
that real kinds do the same with real weights is tested in ``tests/chain``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.core.digest import FileRecord, hash_file
from ingot.core.executor import Listener, Outcome
from ingot.core.project import Project
from ingot.core.session import Session
from projectkit import Sandbox


@dataclass
class Flowing:
    """Stands for the executor. ``ran`` lists each run as (kind, numbers of artifacts, kinds that flowed in)."""

    ran: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    #: Called with each job before anything is written.
    before: Callable[[Mapping[str, Any]], None] = lambda _job: None
    #: Added to what a virtual input of this kind is measured as: a stage that does not give the same twice.
    other: Mapping[str, str] = field(default_factory=dict)
    #: Kinds that let a virtual input pass unmeasured.
    careless: tuple[str, ...] = ()

    def run(self, job: Mapping[str, Any], log: Path, _lock_fd: int, _listener: Listener) -> Outcome:
        """Write ``out.txt`` of each artifact."""
        log.touch()
        self.before(job)
        parts = [job, *({**job, **other} for other in job.get("others", ()))]
        self.ran.append((job["kind"], len(parts), tuple(_kinds(job))))
        results = [self._write(part) for part in parts]
        return Outcome(results[0]["metrics"], "not isolated", 0.0, 1000, 2000, results)

    def _write(self, job: Mapping[str, Any]) -> dict[str, Any]:
        (Path(job["out"]) / "out.txt").write_bytes(self.content(job))
        return {"metrics": _metrics(self.content(job)), "passed": self._passed(job)}

    def content(self, job: Mapping[str, Any]) -> bytes:
        """The bytes of what a job writes, or would write."""
        own = [job["kind"], hashlib.sha256(json.dumps(job["params"], sort_keys=True).encode()).hexdigest()]
        for role in sorted(job["inputs"].keys() | job.get("virtual", {}).keys()):
            if role in job.get("virtual", {}):
                below = self.content(job["virtual"][role])
            else:
                below = b"".join((Path(path) / "out.txt").read_bytes() for path in job["inputs"][role])
            own.append(hashlib.sha256(below).hexdigest())
        return "\n".join([*own, self.other.get(job["kind"], "")]).encode()

    def _passed(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if job["kind"] in self.careless:
            return {}
        return {
            role: {
                "metrics": _metrics(self.content(below)),
                "files": [record_of("out.txt", self.content(below), Path(below["scratch"])).to_dict()],
                "tensors": {},
                "passed": self._passed(below),
            }
            for role, below in job.get("virtual", {}).items()
        }

    def close(self) -> None:
        """Nothing was started."""

    def kill_all(self) -> None:
        """Nothing runs."""


def _kinds(job: Mapping[str, Any]) -> list[str]:
    return [kind for below in job.get("virtual", {}).values() for kind in (*_kinds(below), below["kind"])]


def _metrics(content: bytes) -> dict[str, Any]:
    return {"weight_bytes": {"value": len(content), "unit": "B", "method": "counted while it flowed"}}


def record_of(name: str, content: bytes, scratch: Path) -> FileRecord:
    """The record of a file with this content."""
    path = scratch / "counted"
    path.write_bytes(content)
    return FileRecord(name, *hash_file(path))


def chain(
    *, merged: bool = True, pruned: bool = True, types: Sequence[str] = ("Q8_0",), more: str = "", adapter: str = "a"
) -> str:
    """A spec: base, adapter → merged → pruned → gguf; whether the middle ones are virtual is said."""
    virtual = {True: ", virtual: true", False: ""}
    return (
        "targets:\n"
        "  base: {kind: command, command: [base]}\n"
        f"  adapter: {{kind: command, command: [{adapter}]}}\n"
        f"  merged: {{kind: merge, from: {{model: base, adapter: adapter}}{virtual[merged]}}}\n"
        f"  pruned: {{kind: prune, from: {{model: merged}}, sparsity: 0.5{virtual[pruned]}}}\n"
        f"  gguf: {{kind: gguf, from: {{model: pruned}}, matrix: {{type: [{', '.join(types)}]}}}}\n{more}"
    )


@dataclass
class Chains:
    """A sandbox whose targets are built by ``Flowing``."""

    sandbox: Sandbox
    executor: Flowing = field(default_factory=Flowing)

    def session(self) -> Session:
        """A new process's view of the project."""
        session = Session(Project.open(self.sandbox.root))
        session.selected = tuple(session.project.nodes)
        vars(session.project)["executor"] = self.executor
        return session

    def doit(self, *names: str, session: Session | None = None) -> Session:
        """What ``doit`` does for these targets, which come inputs first; for all of them without names."""
        session = session or self.session()
        for name in names or tuple(session.project.nodes):
            if not session.up_to_date(name):
                session.execute(name)
        session.close()
        return session

    def ran(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """What ran since this was asked last."""
        found = list(self.executor.ran)
        self.executor.ran.clear()
        return found

    def states(self) -> dict[str, str]:
        """The state of each target, without its spec."""
        project = Project.open(self.sandbox.root)
        return {item.node.name: item.state for item in project.plan(project.nodes.values()).values()}
