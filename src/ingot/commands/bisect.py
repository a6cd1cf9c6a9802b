"""``doit bisect``: find the step of a chain at which a metric first breaks a limit, measuring only what is missing.

Each probe is a run of ``doit`` for one measurement, with all that it needs: the same tasks, locks, screen and signals.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit.cmd_run import Run as DoitRun
from doit.cmdparse import CmdParseError

from ingot.commands.base import JSON_OPTION, complain, parsing_words, value
from ingot.commands.run import Run
from ingot.commands.screen import Screen
from ingot.core.bisection import Limit, Line, Probe
from ingot.errors import IngotError, UsageError

if TYPE_CHECKING:
    from ingot.core.graph import Node
    from ingot.core.plan import Planned
    from ingot.core.session import Session

_INTERRUPTED = 130
#: What nothing has measured, and what a search that found no step ends with.
_NOT_FOUND = 1


class Failed(Exception):
    """A probe could not be built; doit has said why. ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Bisect(Run):
    """Bisect the chains of a report."""

    name = "bisect"
    doc_purpose = "find the step of a chain at which a metric breaks a limit"
    doc_usage = "SPEC[:REPORT] --metric [TASK.]METRIC (--max X | --min X) [--target T] [-n N] [--force] [--json]"
    doc_description = (
        "Measures both ends of a candidate's chain and then halves it until the lossy step is found. Measurements that "
        "the log has are taken, the others are built as the report would build them (REPORT.INTERMEDIATE), so nothing "
        "is measured twice. Exit code 0: a step was found; 1: none was (the metric holds at the end, is beyond the "
        "limit at the start, or could not be measured); 2: wrong use."
    )
    cmd_options = (
        *Run.cmd_options,
        value("metric", "what is measured: METRIC of the report's own evaluation, or TASK.METRIC"),
        value("max", "the metric must not be above this"),
        value("min", "the metric must not be below this"),
        value("target", "whose chain is searched; without it those of all candidates"),
        JSON_OPTION,
    )
    _json = False
    _params: Any = None

    def parse_execute(self, in_args: Sequence[str]) -> Any:
        """Options may follow the name."""
        try:
            params, rest = self.cmdparser.parse(list(in_args))
            arguments: list[str] = []
            while rest:
                arguments.append(rest[0])
                params, rest = self.cmdparser.parse_only(rest[1:], params)
        except CmdParseError as error:
            return complain(str(self._usage(parsing_words(error))), 2)
        return self.execute(params, arguments)

    def execute(self, params: Any, args: Sequence[str]) -> Any:
        """Search; every expected failure is one message and an exit code."""
        try:
            metric, limit = self._asked(params, args)
            self._params, self._json = params, bool(params["json"])
            return self._search_all(args[0], metric, limit, params["target"])
        except Failed as failed:
            return failed.code
        except IngotError as error:
            return complain(str(error), error.exit_code)
        except KeyboardInterrupt:
            return complain("interrupted", _INTERRUPTED)

    def _usage(self, what: str) -> UsageError:
        return UsageError("E-USAGE", what, facts=[f"usage: doit {self.name} {self.doc_usage}"], hint="doit help bisect")

    def _asked(self, params: Mapping[str, Any], args: Sequence[str]) -> tuple[str, Limit]:
        if len(args) != 1:
            raise self._usage(f"doit bisect needs the name of a spec or of a report, not {len(args)} names")
        given = [side for side in ("max", "min") if params[side] is not None]
        if params["metric"] is None or len(given) != 1:
            raise self._usage("doit bisect needs --metric, and either --max or --min")
        try:
            number = float(params[given[0]])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._usage(f"--{given[0]} is a number, not {params[given[0]]!r}")
        return str(params["metric"]), Limit("max" if given[0] == "max" else "min", number)

    def _search_all(self, name: str, metric: str, limit: Limit, target: str | None) -> int:
        from ingot.core import probes
        from ingot.core.project import find_root
        from ingot.doit_tasks import current_session

        session = current_session(find_root(Path.cwd()))
        project = session.project
        report = probes.report_of(project, name)
        lines = [probes.chain(project, report, end) for end in probes.ends(project, report, target)]
        probes.add(project, report, dict.fromkeys(each for line in lines for each in line))
        for line in lines:
            probes.require_metric(project, report, line, metric)
        screen = Screen(sys.stdout)
        prober, found = _Prober(self, session, report, metric), [Line(tuple(line), metric, limit) for line in lines]
        for each in found:
            prober.search(each, lambda text: None if self._json else screen.piece(text + "\n"))
        if self._json:
            limits = {limit.side: limit.value}
            head = {"format": 1, "report": report.id, "metric": metric, "limit": limits}
            screen.json({**head, "bisections": [each.to_dict() for each in found]})
        return 0 if any(each.search.verdict() == "found" for each in found) else _NOT_FOUND

    def build(self, name: str) -> None:
        """Run doit for one measurement; ``Failed`` where that does not succeed."""
        from ingot.reporter import LiveReporter

        self.dep_manager = None
        LiveReporter.brief = True
        try:
            code = super().execute(self._params, [name])
        finally:
            LiveReporter.brief = False
        if code:
            if self._json:
                sys.stderr.writelines(f"{error}\n" for error in LiveReporter.errors.values())
            raise Failed(int(code))

    @wraps(DoitRun._execute)  # noqa: SLF001 - doit reads from the signature which options to hand over
    def _execute(self, **options: Any) -> Any:
        with ExitStack() as stack:
            if self._json:
                options["outfile"] = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            return super()._execute(**options)


class _Prober:
    """Finds out what an element of a chain is worth: from the log, by definition, or by a run of doit."""

    def __init__(self, command: Bisect, session: Session, report: Node, metric: str) -> None:
        self._command, self._session, self._report, self._metric = command, session, report, metric

    def search(self, line: Line, tell: Callable[[str], None]) -> None:
        """Measure until the step is found; each probe is told as it comes."""
        tell(line.title())
        for place in range(len(line.names)):
            known = self._known(line.names[place])
            if known is not None:
                tell(line.take(place, known))
        while (index := line.search.next()) is not None:
            tell(line.take(index, self._measured(line.names[index])))
        for text in line.notes():
            tell(f"note: {text}")
        tell(line.conclusion())

    def _node(self, name: str) -> Node:
        from ingot.core import probes

        node = probes.probe(self._session.project, self._report, name, self._metric)
        if node is None:
            what = f"{self._report.id} does not ask that of {name}"
            raise UsageError("E-METRIC", what, hint="the reference is not asked what compares with it")
        return node

    def _known(self, name: str) -> Probe | None:
        """What the log, or a definition, says of an element; None where it must be built."""
        from ingot.core.directions import AGAINST_ITSELF

        if name in self._report.inputs.get("reference", ()) and self._metric in AGAINST_ITSELF:
            return Probe(name, f"{self._report.id}.{name}", "defined", AGAINST_ITSELF[self._metric])
        node = self._node(name)
        planned = self._planned(node)
        forgotten = any(reason.code == "forgotten" for reason in planned.reasons)
        if planned.receipt is None or forgotten or planned.restored:
            return None
        return self._probe(name, node, "reused", planned.receipt)

    def _planned(self, node: Node) -> Planned:
        project = self._session.project
        project.index.sync()
        return project.plan(project.with_inputs([node]))[node.id]

    def _measured(self, name: str) -> Probe:
        node = self._node(name)
        self._command.build(node.id)
        built = self._session.outcomes[node.id]
        return self._probe(name, node, "reused" if built.fate in ("fresh", "restored") else "built", built.receipt)

    def _probe(self, name: str, node: Node, how: str, receipt: Mapping[str, Any]) -> Probe:
        metric = receipt["metrics"].get(self._metric.rpartition(".")[2])
        if metric is None:
            return Probe(name, node.id, "not_measured", place=receipt, reason=self._reason(receipt))
        interval = (metric["interval"][0], metric["interval"][1]) if "interval" in metric else None
        return Probe(name, node.id, how, metric["value"], interval, receipt)

    def _reason(self, receipt: Mapping[str, Any]) -> str | None:
        """Why it was not measured, in the words of its evaluation, where that is at hand."""
        from ingot.core.waterfall import reasons_of

        return reasons_of(self._session.project, receipt).get(self._metric.rpartition(".")[2])
