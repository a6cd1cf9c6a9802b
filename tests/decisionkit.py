"""Results recorded without running a stage: what a test of decisions needs is a log, objects, and gates over them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ingot.core.plan import Planned
from ingot.core.project import Project
from ingot.core.standing import Standing
from ingot.core.statement import build_statement, decision_statement
from projectkit import Sandbox
from recordkit import publish
from registrykit import receipt

#: A value, or a whole metric where it has an interval.
Metrics = Mapping[str, float | Mapping[str, object]]
#: Further files of an artifact, by the name of its target.
Files = Mapping[str, Mapping[str, bytes]]


def own_keys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process use the sandbox's keys and pins."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))


def opened(sandbox: Sandbox) -> Project:
    """The project as a new process would open it."""
    return Project.open(sandbox.root)


def plan(project: Project) -> dict[str, Planned]:
    """The fate of everything."""
    return project.plan(project.nodes.values())


def fill(
    sandbox: Sandbox,
    content: str = "x",
    metrics: Mapping[str, Metrics] | None = None,
    *,
    only: str = "",
    files: Files | None = None,
) -> dict[str, str]:
    """Give every target that is not fresh (or ``only`` one) a result, in order, as ``doit`` would; digests by target.

    A target's artifact holds its name and ``content``; ``metrics`` are by the name within the spec.
    """
    project = opened(sandbox)
    for node in project.nodes.values():
        planned = plan(project)[node.id]
        if only not in ("", node.id):
            continue
        if planned.state != "fresh":
            more = dict((files or {}).get(node.name, {}))
            digest, records = publish(sandbox, {"out.txt": f"{node.name} {content}\n".encode(), **more})
            _record(project, planned, digest, [record.to_dict() for record in records], metrics or {})
        elif planned.restored:
            fields = {"target": node.id, "spec": node.spec, "key": planned.key, "digest": planned.digest}
            project.record(decision_statement("selected", fields))
    found = {name: str(item.digest) for name, item in plan(project).items()}
    project.save()
    return found


def _record(project: Project, planned: Planned, digest: str, files: Any, metrics: Mapping[str, Metrics]) -> None:
    node = planned.node
    inputs: dict[str, Any] = {}
    for role, names in node.inputs.items():
        listed = [
            {"target": f"{node.spec}:{name}", "digest": str(project.current[f"{node.spec}:{name}"]["digest"])}
            for name in names
        ]
        if listed:
            inputs[role] = listed[0] if role in node.single_roles else listed
    measured = {
        name: {"unit": "1", "method": "typed in", **(value if isinstance(value, Mapping) else {"value": value})}
        for name, value in metrics.get(node.name, {}).items()
    }
    made = receipt(target=node.id, spec=node.spec, kind=node.kind, revision=node.revision, key=planned.key)
    made |= {"key_parts": planned.parts, "digest": digest, "files": files, "inputs": inputs, "metrics": measured}
    made["timings"] |= {"finished": decision_statement("x", {"target": "", "digest": ""})["predicate"]["time"]}
    project.record(build_statement(made))
    project.store.remember(node.id)


#: Two candidates and a report over them. ``command`` targets fit every role.
REPORT = """\
targets:
  base: {kind: command, command: [echo, base]}
  data: {kind: command, command: [echo, data]}
  gguf: {kind: command, command: [echo, WORD], from: {model: base}}
  report: {kind: report, from: {data: data, reference: base, candidates: [gguf]}}
"""


def report_spec(sandbox: Sandbox, gates: str = "", *, word: str = "one") -> None:
    """A chain that ends in a report; ``word`` is a parameter of its candidate."""
    sandbox.spec(REPORT.replace("WORD", word) + (f"gates:\n{gates}" if gates else ""))


def active(sandbox: Sandbox, target: str) -> str | None:
    """The digest that the logs say is active."""
    decision = Standing(opened(sandbox)).active(target)
    return None if decision is None else decision.digest


def last_good(sandbox: Sandbox, target: str) -> str | None:
    """The digest of the newest result that no gate failed for."""
    found = Standing(opened(sandbox)).last_good(target)
    return None if found is None else str(found["digest"])


def size(sandbox: Sandbox) -> int:
    """How many entries all logs hold."""
    return sum(head.size for head in opened(sandbox).registry.heads().values())


def merge(one: Sandbox, other: Sandbox) -> None:
    """Bring the logs and objects of ``other`` into ``one``, as git and a copied cache would."""
    for folder in (other.root / "registry").iterdir():
        goal = one.root / "registry" / folder.name
        if not goal.exists() or (goal / "log.jsonl").stat().st_size < (folder / "log.jsonl").stat().st_size:
            shutil.copytree(folder, goal, dirs_exist_ok=True)
    for path in (other.root / "cache" / "objects").glob("*/*"):
        goal = one.root / "cache" / "objects" / path.parent.name / path.name
        if not goal.exists():
            shutil.copytree(path, goal)


def clone(sandbox: Sandbox, folder: Path) -> Sandbox:
    """Another user's copy of a project: everything but the key and the pins."""
    shutil.copytree(sandbox.root, folder / "project", symlinks=True)
    return Sandbox(folder / "project", folder / "home")
