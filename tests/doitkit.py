"""``doit`` in this process, from the command line to the last word on the screen: ten times cheaper than a process.

Only the child that would run a stage is left out: a target's stage writes a small file here, made of its parameters and
of what its inputs hold, so that what is built differs where it should.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doit import cmd_run, plugin
from doit.doit_cmd import DoitMain

from ingot import doit_tasks
from ingot.core import project, worker
from ingot.core.executor import Executor, Listener, Outcome
from ingot.reporter import LiveReporter
from ingot.view import interrupt
from projectkit import Sandbox


class Inline(Executor):
    """Runs a job at once, in this process."""

    def run(self, job: Mapping[str, Any], log: Path, lock_fd: int, listener: Listener) -> Outcome:
        """Write ``out.txt``; an error of the system becomes what the child would report."""
        with log.open("ab"):
            pass
        try:
            # A digest: parameters may name folders, which no output may hold.
            texts = [hashlib.sha256(json.dumps(job["params"], sort_keys=True).encode()).hexdigest()]
            texts += [(Path(path) / "out.txt").read_text() for paths in job["inputs"].values() for path in paths]
            texts += [path.read_text() for source in job["sources"] for path in Path(source).iterdir()]
            with (Path(job["out"]) / "out.txt").open("w") as file:
                file.write("".join(texts))
        except OSError as error:
            raise worker._explained(error, Path(job["out"])) from error
        size = {"value": sum(map(len, texts)), "unit": "B", "method": "sum of the sizes of the files written"}
        return Outcome({"bytes": size}, "not isolated", 0.0, None, None)


class _Screen(io.StringIO):
    """A stream that has a descriptor, as standard output has."""

    def fileno(self) -> int:
        return 1


@contextmanager
def prepared() -> Iterator[None]:
    """Runs inside use ``Inline``, and do not look for installed commands again each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "Executor", Inline)
        patch.setattr(plugin, "entry_points_impl", lambda: _commands)
        yield


_commands = functools.cache(importlib.metadata.entry_points)


def run(sandbox: Sandbox, *arguments: str) -> tuple[int, str]:
    """``doit ARGUMENTS`` in the sandbox; its exit code and all that it printed."""
    before, path, environment = os.getcwd(), list(sys.path), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in interrupt._SIGNALS}
    text = _Screen()
    # As a process finds them at its start.
    doit_tasks._session = LiveReporter.session = None
    LiveReporter.errors.clear()
    cmd_run.opt_outfile["default"] = text
    os.environ.update(sandbox.env)
    os.chdir(sandbox.root)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = DoitMain(config_filenames=()).run(list(arguments))
            if doit_tasks._session is not None:
                doit_tasks._session.close()
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("dodo", None)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return int(code or 0), text.getvalue()
