"""What every sub-command of ours shares: options after arguments, ``--json``, one clear message and an exit code.

A command is one file ``ingot/commands/<verb>.py`` with one class, found by doit through the entry-point group
``doit.COMMAND``. Commands load no task, so they work in under a second and beside a running build.
"""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from doit.cmd_base import Command
from doit.cmdparse import CmdParseError

from ingot import registry
from ingot.commands.screen import Screen
from ingot.errors import DiskFailed, IngotError, SpecError, UsageError

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.project import Project

#: The exit code of a command whose reader went away (``| head``): 128 + SIGPIPE, as a shell reports it.
_PIPE_CLOSED = 141
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

JSON_OPTION: Mapping[str, Any] = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print JSON for programs (stable; see docs/json.md)",
}


def flag(name: str, help_text: str, short: str = "") -> dict[str, Any]:
    """An option without a value, off by default."""
    return {"name": name, "long": name, "short": short, "type": bool, "default": False, "help": help_text}


def value(name: str, help_text: str) -> dict[str, Any]:
    """An option with a text as its value; None where it is not given."""
    return {"name": name, "long": name, "type": str, "default": None, "help": help_text}


class IngotCommand(Command):  # type: ignore[misc]  # doit ships no types
    """Base of our sub-commands. Subclasses say their arguments and options and implement ``run``."""

    #: How many arguments are taken: (at least, at most); None for any number.
    arguments: ClassVar[tuple[int, int | None]] = (0, None)
    cmd_options: ClassVar[Sequence[Mapping[str, Any]]] = (JSON_OPTION,)

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """Do the work; returns the exit code. IngotError becomes a message and its exit code."""
        raise NotImplementedError

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        """Run with parsed options; every expected failure becomes one message on stderr and an exit code."""
        try:
            _listen()
            self._check_count(pos_args)
            code = self.run(Screen(sys.stdout), opt_values, list(pos_args))
            sys.stdout.flush()
        except IngotError as error:
            return complain(str(error), error.exit_code)
        except KeyboardInterrupt as interrupt:
            # Once is enough: another one would cut short what ends the helpers, or come before the exit code is given.
            _listen(signal.SIG_IGN)
            return complain("interrupted", 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
        except BrokenPipeError:
            # Python flushes stdout once more at its end; give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_CLOSED
        except OSError as error:
            from ingot.core import disk

            failed = disk.failure(error, Path.cwd())
            return complain(str(failed), failed.exit_code)
        return code

    def parse_execute(self, in_args: Sequence[str]) -> int:
        """Parse the command line, options in any place, and run. ``--help`` is ``doit help`` of this command."""
        given = _as_given(self.name, in_args)
        if given and given[-1] == "--help":
            Screen(sys.stdout).line(self.help())
            return 0
        try:
            options, arguments = self._parse(given)
            self._check_values(options)
        except UsageError as error:
            return complain(str(error), error.exit_code)
        return self.execute(options, arguments)

    def _parse(self, in_args: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
        """Options may follow arguments (``doit show x:y --json``), which doit's own parser does not allow."""
        try:
            options, rest = self.cmdparser.parse(list(in_args))
            arguments: list[str] = []
            literal = len(in_args) > len(rest) and in_args[len(in_args) - len(rest) - 1] == "--"
            while rest and not literal:
                arguments.append(rest[0])
                later = rest[1:]
                options, rest = self.cmdparser.parse_only(later, options)
                literal = len(later) > len(rest) and later[len(later) - len(rest) - 1] == "--"
        except CmdParseError as error:
            raise self._usage(parsing_words(error)) from None
        return {**options, **self.opt_vals}, arguments + rest

    def _check_values(self, options: Mapping[str, Any]) -> None:
        """An option with an empty value is a variable of a script that was never set: no file, folder or name."""
        for option in self.cmd_options:
            if option.get("type", str) is str and options[option["name"]] == "":
                raise self._usage(f"option --{option['long']} is empty")

    def _usage(self, what: str) -> UsageError:
        usage = f"doit {self.name} {self.doc_usage}".rstrip()
        return UsageError("E-USAGE", what, facts=[f"usage: {usage}"], hint=f"doit help {self.name}")

    def _check_count(self, arguments: Sequence[str]) -> None:
        least, most = self.arguments
        if len(arguments) < least:
            raise self._usage(f"doit {self.name} needs {least} argument{'s' * (least != 1)}, not {len(arguments)}")
        if most is not None and len(arguments) > most:
            taken = f"at most {most} argument{'s' * (most != 1)}" if most else "no argument"
            raise self._usage(f"doit {self.name} takes {taken}, not {len(arguments)}: {' '.join(arguments)}")


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _listen(answer: Callable[[int, FrameType | None], None] | signal.Handlers = _stop) -> None:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does; what was ignored from the start stays ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS if answer is not _stop else _SIGNALS[1:]:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, answer)


def _as_given(name: str, handed: Sequence[str]) -> Sequence[str]:
    """The arguments of a command as they were given, of which doit hands on those without ``=``: it takes them for
    variables, and a query, a reason or a path may have one.
    """
    given = sys.argv[1:]
    for at, word in enumerate(given):
        if word == name and [each for each in given[at + 1 :] if each[:1] == "-" or "=" not in each] == list(handed):
            return given[at + 1 :]
    return handed


def parsing_words(error: CmdParseError) -> str:
    """What is wrong with a command line, without what doit says around it."""
    return str(error).partition(" (parsing options")[0].removeprefix("Error parsing Command: ").strip()


def complain(message: str, code: int) -> int:
    """Say on standard error why a command ends, and give its exit code."""
    with suppress(BrokenPipeError):
        sys.stderr.write(message.rstrip("\n") + "\n")
    return code


def json_text(value: object, stream_encoding: str | None) -> str:
    """A JSON document as the commands print it; plain ASCII where the stream can take nothing else."""
    plain = (stream_encoding or "").lower().replace("-", "") != "utf8"
    return json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False) + "\n"


def open_project() -> Project:
    """The project that the current folder lies in, with its specs. SpecError, UsageError."""
    from ingot.core.project import Project

    return Project.open(Path.cwd())


def open_readable() -> Project:
    """The project with its specs, which name gates and kinds; without them where one is bad: the log needs none."""
    try:
        return open_project()
    except SpecError:
        return registry.open_log()


def remedy(project: Project, target: str) -> str:
    """What helps when a target's artifact is not whole: the command that builds it, where a spec still declares it."""
    spec, newest = target.partition(":")[0], project.index.latest.get(target)
    nodes = registry.declared(project)
    if target in nodes:
        evicted = newest is not None and project.store.is_evicted(str(newest["digest"]))
        return f"write it again: doit materialize {target}" if evicted else f"build it again: doit {target}"
    if any(node.spec == spec for node in nodes.values()):
        return "its spec declares it no longer"
    # A bad spec declares nothing here, and may well declare this target.
    if any((project.root / "specs").rglob(f"{spec}.yaml")):
        return f"build it again: doit {target}"
    return "its spec is gone"


def keep_derived(project: Project) -> None:
    """Save the caches for the next process; a read-only folder must not fail a command that only reads."""
    with suppress(DiskFailed):
        project.save()


def select(project: Project, names: Sequence[str], *, inputs: bool = False) -> list[Node]:
    """The nodes that these names mean, in the order of the graph; no names mean what ``doit`` alone builds.

    A name is a spec, a target (``spec:gguf`` means all instances, and what it implies), an instance, or a pattern
    with ``*`` as doit takes it. With ``inputs`` everything that they are built from is included. UsageError
    (E-TARGET) for a name that means nothing.
    """
    if not names:
        names = project.default_specs
    wanted: set[str] = set()
    for name in names:
        found = list(_matching(project, name))
        if not found:
            raise registry.unknown_target(name, _all_names(project))
        wanted.update(found)
    chosen = [node for node in project.nodes.values() if node.id in wanted]
    return project.with_inputs(chosen) if inputs else chosen


def _matching(project: Project, name: str) -> Iterator[str]:
    for node in project.nodes.values():
        if name in (node.spec, node.id, f"{node.spec}:{node.target}") or (
            "*" in name and fnmatch.fnmatchcase(node.id, name)
        ):
            yield node.id


def _all_names(project: Project) -> list[str]:
    groups = {f"{node.spec}:{node.target}" for node in project.nodes.values()}
    return sorted({*project.graphs, *project.nodes, *groups})
