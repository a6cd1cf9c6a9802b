"""The graph as doit tasks. doit only schedules: store and registry decide what is up to date.

A target is the task ``SPEC:TARGET`` or ``SPEC:TARGET@VALUES``; a spec and a target with a matrix are groups.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doit.action import PythonAction
from doit.exceptions import InvalidDodoFile, TaskError, TaskFailed
from doit.task import Task

from ingot.core import disk
from ingot.core.graph import Node
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.errors import GateFailed, IngotError, SpecError
from ingot.reporter import LiveReporter

#: What ``dodo.py`` hands to doit: no database on disk, threads, our reporter.
DOIT_CONFIG: dict[str, Any] = {
    "backend": "sqlite3",
    "dep_file": ":memory:",
    "par_type": "thread",
    "reporter": LiveReporter,
    "verbosity": 2,
}

_session: Session | None = None


def current_session(root: Path) -> Session:
    """The one session of this process; a bad spec becomes doit's InvalidDodoFile."""
    global _session  # noqa: PLW0603 - doit has no place for the state of a run
    if _session is None:
        try:
            _session = Session(Project.open(root))
        except SpecError as error:
            count = len(error.problems)
            raise InvalidDodoFile(f"{count} problem{'s' * (count != 1)} in specs\n{error}") from None
        except IngotError as error:
            raise InvalidDodoFile(str(error)) from None
        except OSError as error:
            raise InvalidDodoFile(str(disk.failure(error, root))) from None
        atexit.register(_session.close)
        LiveReporter.session = _session
    return _session


def default_tasks(root: Path) -> list[str]:
    """``doit`` alone builds every spec that lies directly in ``specs/``."""
    return current_session(root).project.default_specs


def tasks(root: Path) -> Iterator[Task]:
    """All tasks: one a target, one a matrix, one a spec."""
    session = current_session(root)
    for spec, graph in session.project.graphs.items():
        groups: dict[str, list[Node]] = {}
        for node in graph.nodes:
            groups.setdefault(node.target, []).append(node)
        for target, nodes in groups.items():
            yield from _target_tasks(session, f"{spec}:{target}", nodes)
        names = [f"{spec}:{target}" for target in groups]
        yield Task(spec, None, task_dep=names, has_subtask=True, doc=f"all targets of {graph.file}")


def _target_tasks(session: Session, group: str, nodes: list[Node]) -> Iterator[Task]:
    instances = [node for node in nodes if not node.hidden]
    single = len(instances) == 1 and instances[0].id == group
    for node in nodes:
        yield _task(session, node, None if node.id == group else group)
    if not single:
        names = [node.id for node in instances]
        yield Task(group, None, task_dep=names, has_subtask=True, doc=f"{instances[0].kind}: {len(names)} variants")


def _task(session: Session, node: Node, group: str | None) -> Task:
    def up_to_date() -> bool:
        try:
            return session.up_to_date(node.id)
        except (IngotError, OSError):
            # doit cannot report an error here; the action meets it again and reports it.
            session.planned.pop(node.id, None)
            return False

    return Task(
        node.id,
        [(_run, [session, node.id])],
        task_dep=[f"{node.spec}:{name}" for names in node.inputs.values() for name in names],
        uptodate=[up_to_date],
        clean=[_Unlink(session, node)],
        doc=f"{node.kind}, virtual" if node.virtual else node.kind,
        io={"capture": False},
        subtask_of=group,
    )


def _run(session: Session, name: str) -> TaskFailed | TaskError | None:
    try:
        session.execute(name)
    except GateFailed as failed:
        # No failure to doit, which would skip all that is built from it, the report that shows how bad it is included.
        session.broken[name] = failed
    except (IngotError, OSError) as caught:
        error = caught if isinstance(caught, IngotError) else disk.failure(caught, session.project.store.root)
        LiveReporter.errors[name] = error
        return TaskFailed(str(error), report=False) if error.exit_code == 1 else TaskError(str(error), report=False)
    return None


class _Unlink(PythonAction):  # type: ignore[misc]
    """``doit clean``: remove the link of a target. Its object stays for ``gc``, its entries for ever."""

    def __init__(self, session: Session, node: Node) -> None:
        super().__init__(session.project.store.unlink_latest, [node.spec, node.name])
        self._link = f"cache/latest/{node.spec}/{node.name}"

    def __str__(self) -> str:
        return f"remove the link {self._link}"
