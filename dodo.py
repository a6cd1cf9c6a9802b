"""doit's entry: every spec in specs/ as tasks. Run ``doit``, ``doit list``, ``doit plan``."""

from pathlib import Path

from ingot import doit_tasks

HERE = Path(__file__).parent
DOIT_CONFIG = doit_tasks.DOIT_CONFIG | {"default_tasks": doit_tasks.default_tasks(HERE)}


def task_ingot():
    """The targets of all specs."""
    yield from doit_tasks.tasks(HERE)
