"""What a run looks like while it goes on: doit's events, translated for the screen.

doit calls the methods below; running stages are heard through ``session.listeners``. On a terminal the screen is
live (rich, imported with the first target that runs); elsewhere it is whole lines. Nothing is said twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

from ingot.core.build import Built
from ingot.core.reasons import found_again, summary
from ingot.core.session import Session
from ingot.core.table import Table
from ingot.errors import IngotError, StageFailed
from ingot.view import interrupt
from ingot.view.board import Board
from ingot.view.closing import NO_SPECS, Item, closing_page, gate_lines, nothing_to_do
from ingot.view.lines import failure_block, result_line, title
from ingot.view.live import LiveScreen
from ingot.view.plain import PlainScreen, Screen, is_terminal
from ingot.view.text import Line, duration

_IMPORTED = time.monotonic()
_NAME_MAX = 40
#: Names of what a skipped target needs that are said.
_NEEDS_MAX = 4
#: A table in a log is as wide as it needs.
_LOG_WIDTH = 140


class Task(Protocol):
    """What this module reads of a doit task."""

    name: str
    actions: list[Any]
    task_dep: list[str]


class Fail(Protocol):
    """What this module reads of doit's failures."""

    def get_name(self) -> str:
        """The kind of failure."""

    def get_msg(self) -> str:
        """The message, with the traceback where an exception was not expected."""


class LiveReporter:
    """doit's reporter interface over a ``Board`` and a ``Screen``."""

    desc = "live view on a terminal, plain lines elsewhere"
    #: The run that is shown; set when the tasks are made.
    session: ClassVar[Session | None] = None
    #: Why targets failed, in ingot's own words.
    errors: ClassVar[dict[str, IngotError]] = {}
    #: Whether a run is one of several of a command: then it ends without a closing page.
    brief: ClassVar[bool] = False

    def __init__(self, outstream: TextIO, options: Mapping[str, Any]) -> None:  # noqa: ARG002 - doit's signature
        self._stream = outstream
        self._board = Board()
        self._terminal = is_terminal(outstream, os.environ)
        self._screen: Screen = (LiveScreen if self._terminal else PlainScreen)(outstream, self._board)
        self._stopping = False
        self._runtime_errors: list[str] = []
        self._reasons: dict[str, str] = {}
        #: Targets that another process built while this one waited for them.
        self._elsewhere: set[str] = set()
        #: Virtual targets that were asked for by name.
        self._asked: list[str] = []

    # --- called by doit ------------------------------------------------------------------------------------

    def initialize(self, tasks: Mapping[str, Task], selected_tasks: Iterable[str]) -> None:
        """Before the first task: which targets this run visits, who listens, and what a signal does."""
        session = self.session
        if session is None:
            return
        self._board.targets = tuple(name for name in _closure(tasks, selected_tasks) if name in session.project.nodes)
        session.selected = self._board.targets
        self._asked = [name for name in selected_tasks if name in session.project.nodes]
        session.listeners.append(self._board.hear)
        interrupt.install(self._stop, self._screen.close, self._stream.fileno(), terminal=self._terminal)

    def get_status(self, task: Task) -> None:
        """doit asks whether a task is up to date."""

    def execute_task(self, task: Task) -> None:
        """A task starts. A result that is only put in its place is no run and is not shown as one."""
        session = self.session
        if self._stopping or not task.actions:
            return
        node = session.project.nodes.get(task.name) if session else None
        planned = session.planned.get(task.name) if session else None
        # The session forgets the plan of a target as it executes it.
        if planned and planned.restored and planned.receipt is not None:
            reason = found_again(planned.receipt, task.name).detail
        else:
            reason = summary(planned.reasons) if planned else "asked for"
        self._reasons[task.name] = reason
        if planned is None or planned.state not in ("fresh", "virtual"):
            self._screen.begin(self._board.begin(task.name, node.kind if node else "task", reason))

    def add_success(self, task: Task) -> None:
        """A task ended well."""
        if self._stopping or not task.actions:
            return
        session = self.session
        built = session.outcomes.get(task.name) if session else None
        if session is not None and built is None and task.name in session.project.virtual:
            self._board.end(task.name, "virtual")
            return
        if session is not None and task.name in session.broken:
            self._say_broken(task.name, built, str(session.broken[task.name]))
            return
        if session is None or built is None:
            self._board.end(task.name, "built")
            self._screen.say([title("ran", task.name)])
            return
        begun = self._board.end(task.name, built.fate)
        if built.fate not in ("fresh", "virtual"):
            self._say_built(task.name, built)
        elif begun is not None:
            # It was to be built, and was built when its lock was had.
            self._elsewhere.add(task.name)
            self._screen.say([[*title("fresh", task.name), ("  built by another process meanwhile", "dim")]])

    def skip_uptodate(self, task: Task) -> None:
        """A task is up to date: counted, not listed."""
        if task.name in self._board.targets:
            virtual = self.session is not None and task.name in self.session.project.virtual
            self._board.end(task.name, "virtual" if virtual else "fresh")

    def skip_ignore(self, task: Task) -> None:
        """``doit ignore`` set the task aside."""
        self._board.end(task.name, "skipped")
        self._screen.say([title("skipped", task.name)])

    def add_failure(self, task: Task, fail: Fail) -> None:
        """A task failed or could not start: said once, here."""
        if self._stopping:
            return
        if fail.get_name() == "UnmetDependency":
            if task.actions:
                self._board.end(task.name, "skipped")
                self._screen.say([[*title("skipped", task.name), (f"  needs {_first(fail.get_msg().split())}", "dim")]])
            return
        self._board.end(task.name, "failed")
        self._screen.say(failure_block(task.name, self._words(task, fail)))

    def cleanup_error(self, exception: Fail) -> None:
        """Clean-up of a task failed."""
        sys.stderr.write(exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        """doit itself met an error; said at the end."""
        self._runtime_errors.append(msg)

    def teardown_task(self, task: Task) -> None:
        """A task's teardown starts."""

    def complete_run(self) -> None:
        """The end: one line when there was nothing to do, else what was built and what comes next."""
        self._screen.close()
        if self._stopping:
            return
        board = self._board
        seconds = _since_start()
        if self.brief:
            self._screen.say([[(text.strip(), "red")] for text in self._runtime_errors])
            return
        done = board.names("built", "restored", "failed", "skipped")
        if not done and self.session is not None and not self._runtime_errors:
            if board.count("fresh") or board.count("virtual"):
                evicted = sum(self._is_evicted(name) for name in board.names("fresh"))
                counts = {"fresh": board.count("fresh") - evicted, "virtual": board.count("virtual")}
                line = nothing_to_do({**counts, "evicted": evicted}, seconds, len(self._elsewhere))
                self._screen.say([line, *gate_lines(self.session, board), *self._about_absent()])
            elif not board.targets and not self.session.project.default_specs:
                self._screen.say([[(NO_SPECS, "")]])
            return
        if done:
            if self.session is not None:
                self._show(closing_page(self.session, board, self._screen.width if self._terminal else _LOG_WIDTH))
            notices = self.session.project.registry.notices if self.session is not None else []
            self._screen.say([[(f"note: {notice}", "yellow")] for notice in notices])
            self._screen.say(self._about_absent())
            self._screen.say([[("", "")], [*board.result(), (f" in {duration(seconds)}", "dim")]])
        self._screen.say([[(text.strip(), "red")] for text in self._runtime_errors])

    # --- inside ----------------------------------------------------------------------------------------------

    def _is_evicted(self, name: str) -> bool:
        """Whether a target is in force without its bytes."""
        planned = self.session.planned.get(name) if self.session is not None else None
        return planned is not None and planned.state == "evicted" and self._board.fates.get(name) == "fresh"

    def _about_absent(self) -> list[Line]:
        """Why a target that was asked for by name has no bytes here, and how it is written all the same."""
        virtual = self.session.project.virtual if self.session is not None else {}
        streamed = "is virtual: it is streamed into what is built from it, and not written"
        gone = "is evicted: its bytes were taken away to make room, and nothing needs them"
        return [
            [(f"note: {name} {streamed if name in virtual else gone}; doit materialize {name} writes it", "yellow")]
            for name in self._asked
            if name in virtual or self._is_evicted(name)
        ]

    def _say_built(self, name: str, built: Built) -> None:
        """A result, and before it what flowed into it."""
        for receipt in built.streamed:
            self._board.end(str(receipt["target"]), "streamed")
            reason = f"it flowed into {name}"
            self._say_result(str(receipt["target"]), "streamed", receipt, reason)
        self._say_result(name, built.fate, built.receipt)

    def _say_broken(self, name: str, built: Built | None, words: str) -> None:
        """A result is published; its gates are what failed. The closing page has the verdicts with their values."""
        self._board.end(name, "failed")
        if built is not None and built.fate not in ("fresh", "virtual"):
            self._say_built(name, built)
        self._screen.say(failure_block(name, words.strip().partition("\n")[0]))

    def _say_result(self, name: str, fate: str, receipt: Mapping[str, Any], why: str = "") -> None:
        longest = max((len(each) for each in self._board.targets), default=0)
        layout = (min(longest, _NAME_MAX, self._screen.width // 2), self._screen.width)
        # A plain screen has said why at the start.
        reason = why or (self._reasons.get(name, "") if self._terminal or fate == "restored" else "")
        self._screen.say([result_line(fate, name, receipt, layout, reason)])

    def _words(self, task: Task, fail: Fail) -> str:
        error = self.errors.get(task.name)
        if error is None:
            return fail.get_msg()
        log = error.log if isinstance(error, StageFailed) else None
        if log and not any(fact.startswith("log:") for fact in error.facts):
            return f"{error}\n  log: {log}"
        return str(error)

    def _show(self, items: Iterable[Item]) -> None:
        for item in items:
            if not isinstance(item, Table):
                self._screen.say([item])
            elif self._terminal:
                from ingot.view.draw import draw

                draw(self._stream, item)
            else:
                self._screen.say([[(line, "")] for line in item.lines()])

    def _stop(self) -> None:
        self._stopping = True
        if self.session is not None:
            self.session.project.executor.kill_all()


def _first(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are: a report needs what is measured of each candidate."""
    more = f" and {len(names) - _NEEDS_MAX} more" if len(names) > _NEEDS_MAX else ""
    return " ".join(names[:_NEEDS_MAX]) + more


def _closure(tasks: Mapping[str, Task], selected: Iterable[str]) -> list[str]:
    """The selected tasks and all that they need, each after what it needs, in the order in which doit goes."""
    ordered: dict[str, None] = {}
    todo = [(name, False) for name in reversed(list(selected))]
    seen: set[str] = set()
    while todo:
        name, ready = todo.pop()
        if ready:
            ordered[name] = None
        elif name not in seen:
            seen.add(name)
            todo.append((name, True))
            todo += [(each, False) for each in reversed(tasks[name].task_dep)]
    return list(ordered)


def _since_start() -> float:
    """Seconds since this process started, as a person waits for it; since the import where the system is silent."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
