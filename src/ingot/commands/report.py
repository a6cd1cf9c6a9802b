"""``doit report``: the measured table of a report, with the names of its targets, and its pages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_readable, remedy, value
from ingot.commands.screen import Screen
from ingot.core.report_view import names_of
from ingot.errors import StoreDamaged, UsageError

if TYPE_CHECKING:
    from ingot.core.gates import Verdict
    from ingot.core.project import Project

Json = Mapping[str, Any]
#: The options that write files.
_WRITING = ("html", "write", "open", "card")


class Report(IngotCommand):
    """Render reports that were built; measures nothing."""

    name = "report"
    doc_purpose = "show the table of a report that was built, or write it as a page, Markdown, JSON and a model card"
    doc_usage = (
        "[SPEC[:TARGET]] [--json | --markdown | [--html] [--write DIR] [--open] [--card CANDIDATE]] | --all [--open]"
    )
    doc_description = (
        "Without a name: every report that was built. --html writes report.html, report.md with its charts, "
        "report.json and README.md (a model card) into cache/reports/SPEC/TARGET/; --all one page over the whole "
        "registry into cache/reports/. Nothing is measured: what a page shows comes from the log and the artifacts."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, 1)
    cmd_options = (
        JSON_OPTION,
        flag("markdown", "print Markdown, with how each number was measured"),
        flag("html", "write the page and what belongs to it"),
        value("write", "write them into this folder (of several reports: below it, by spec and target)"),
        flag("open", "write the page and open it in the browser"),
        flag("all", "one page over the whole registry"),
        {**value("card", "write the model card of this candidate; may be given again"), "type": list, "default": []},
    )

    def run(self, screen: Screen, options: Json, arguments: Sequence[str]) -> int:
        """0; 2 when no report of that name was built, 4 when its artifact is missing or damaged.

        Without a name the reports at hand are shown, and those that are not in the store are named on standard error.
        """
        project = open_readable()
        if options["all"]:
            return _write_all(screen, project, options, arguments)
        receipts = [item for item in _receipts(project, arguments) if item["kind"] == "report"]
        if not receipts:
            what = f"no report was built for {arguments[0]!r}" if arguments else "no report was built yet"
            raise UsageError("E-NOT-BUILT", what, hint="doit plan shows what would be built")
        absent = [] if arguments else [item for item in receipts if _is_absent(project, item)]
        found = [
            (receipt, names_of(receipt), read_report(project, receipt)) for receipt in receipts if receipt not in absent
        ]
        if any(options[name] for name in _WRITING):
            _write(screen, project, found, options)
        elif options["json"]:
            listed = [
                {
                    "target": receipt["target"],
                    "digest": receipt["digest"],
                    "names": names,
                    "report": report,
                    "gates": [verdict.to_dict() for verdict in verdicts_of(project, receipt)],
                    "waterfalls": _waterfalls(project, receipt, names),
                }
                for receipt, names, report in found
            ]
            screen.json({"format": 1, "reports": listed})
        else:
            for receipt, _, report in found:
                verdicts = verdicts_of(project, receipt)
                _show(screen, receipt, report, verdicts, markdown=options["markdown"])
                if not options["markdown"]:
                    _show_waterfall(screen, project, receipt)
                _show_gates(screen, verdicts, markdown=options["markdown"])
        for receipt in absent:
            # Beside the reports and not among them: standard output may be JSON or Markdown for a program.
            sys.stderr.write(f"note: {receipt['target']} is not in the store: {remedy(project, receipt['target'])}\n")
        keep_derived(project)
        return 0


def verdicts_of(project: Project, receipt: Json) -> list[Verdict]:
    """The gates that the spec of today sets at a report, judged from what the report was made of; none without it."""
    from ingot.core.gate_judging import judge_at
    from ingot.core.standing import input_digests

    node = project.nodes.get(str(receipt["target"]))
    if node is None:
        return []
    used = input_digests(receipt, receipt["inputs"])

    def now(name: str) -> Json | None:
        if name == node.id:
            return receipt
        try:
            measured = registry.receipt_of_target(project, name)
        except UsageError:
            return None
        return measured if measured["digest"] in used or project.nodes[name].hidden is False else None

    return list(judge_at(project, node, now))


def _show_gates(screen: Screen, verdicts: Sequence[Verdict], *, markdown: bool) -> None:
    if verdicts:
        screen.line("\n## Gates\n" if markdown else "")
    for verdict in verdicts:
        screen.line(f"- {verdict}" if markdown else f"gate: {verdict}")


def _waterfalls(project: Project, receipt: Json, names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """What each step of the chains did, metric by metric."""
    from ingot.core.waterfall import Waterfalls
    from ingot.core.waterfall_view import to_json

    found = Waterfalls(project, dict(receipt), project.standing().lookup)
    return [to_json(found.of(metric), names) for metric in found.metrics]


def _show_waterfall(screen: Screen, project: Project, receipt: Json) -> None:
    """What each step did to the first metric of which a step was measured."""
    from ingot.core.waterfall import Waterfalls
    from ingot.core.waterfall_view import waterfall_table

    found = Waterfalls(project, dict(receipt), project.standing().lookup)
    shown = next((each for each in map(found.of, found.metrics) if each.steps), None)
    if shown is not None:
        drawn = waterfall_table(shown, names_of(receipt), screen.width)
        for text in ("", *drawn.lines(), *drawn.notes):
            screen.line(text)


def _receipts(project: Project, arguments: Sequence[str]) -> list[dict[str, Any]]:
    wanted = arguments[0] if arguments else None
    names = [
        name
        for name in sorted(project.index.latest)
        if wanted is None or name == wanted or name.startswith((f"{wanted}:", f"{wanted}@"))
    ]
    if not names and wanted is not None:
        # Says whether there is no such target, or only no result of it.
        names = [wanted]
    return [registry.receipt_of_target(project, name) for name in names]


def _is_absent(project: Project, receipt: Json) -> bool:
    return project.store.presence(str(receipt["digest"]), receipt["files"])[0] == "missing"


def read_report(project: Project, receipt: Json) -> dict[str, Any]:
    """The content of ``report.json``; StoreDamaged (E-OBJECT-MISSING, E-OBJECT-DAMAGED) when it is not whole."""
    from ingot.core.digest import read_json

    digest = str(receipt["digest"])
    presence, damage = project.store.presence(digest, receipt["files"])
    if presence != "present":
        code, word = (
            ("E-OBJECT-MISSING", "not in the store") if presence == "missing" else ("E-OBJECT-DAMAGED", "damaged")
        )
        what = f"the artifact of {receipt['target']} is {word}"
        facts = [f"{item.path} {item.detail}" for item in damage]
        raise StoreDamaged(code, what, facts=facts, hint=remedy(project, str(receipt["target"])))
    value = read_json((project.store.object_path(digest) / "report.json").read_bytes())
    assert isinstance(value, dict)
    return value


def _show(screen: Screen, receipt: Json, report: Json, verdicts: Sequence[Verdict], *, markdown: bool) -> None:
    from ingot.core import report_view

    names = names_of(receipt)
    if markdown:
        screen.line(report_view.markdown(report, names).rstrip("\n"))
        return
    main = report_view.table(report, names, screen.width, _words(receipt, verdicts))
    screen.line(f"{receipt['target']}")
    for text in (*main.lines(), *main.notes, "", *report_view.steps(report, names).lines()):
        screen.line(text)


def _words(receipt: Json, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """What the gates say of each candidate, by its name; nothing of one without."""
    from ingot.core.gates import worst

    name = str(receipt["target"]).partition(":")[2]
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        for candidate in (item for listed in names_of(receipt).values() for item in listed):
            if f"{verdict.target}.".startswith(f"{name}.{candidate}."):
                found.setdefault(candidate, []).append(verdict)
    return {
        candidate: {"fail": "FAIL", "none": "–"}.get(word, word)
        for candidate, its in found.items()
        if (word := worst(its)) is not None
    }


Found = Sequence[tuple[dict[str, Any], dict[str, list[str]], dict[str, Any]]]


def _write(screen: Screen, project: Project, found: Found, options: Json) -> None:
    """Write each report into its folder, and open the page of the newest where that is asked for."""
    from ingot.view.page import book, facts, write

    if options["card"] and len(found) > 1:
        raise UsageError("E-USAGE", "--card names a candidate of one report", hint="name the report: SPEC:TARGET")
    pages: list[tuple[str, Path]] = []
    files: list[Path] = []
    for receipt, _, report in found:
        target = str(receipt["target"])
        folder = write.default_folder(project.root, target)
        if options["write"] is not None:
            below = folder.relative_to(write.reports(project.root)) if len(found) > 1 else Path()
            folder = Path(options["write"]) / below
        page = facts.collect(book.Book(project), receipt, report, verdicts_of(project, receipt))
        files += write.report(page, folder, options["card"])
        pages.append((str(receipt["timings"]["finished"]), folder / "report.html"))
    _told(screen, files, max(pages)[1], options)


def _write_all(screen: Screen, project: Project, options: Json, arguments: Sequence[str]) -> int:
    """Write the page over the whole registry."""
    from ingot.view.page import overview, write

    if arguments or options["card"]:
        raise UsageError("E-USAGE", "--all is about everything: it takes no name and no --card")
    receipts = [item for item in _receipts(project, ()) if item["kind"] == "report"]
    known = overview.Overview(project, {str(item["target"]): verdicts_of(project, item) for item in receipts})
    folder = write.reports(project.root) if options["write"] is None else Path(options["write"])
    files = write.registry(known, folder)
    _told(screen, files, files[0], options)
    keep_derived(project)
    return 0


def _told(screen: Screen, files: Sequence[Path], page: Path, options: Json) -> None:
    from ingot.view.page import browser

    opened = options["open"] and browser.show(page)
    if options["json"]:
        screen.json({"format": 1, "written": [str(path) for path in files], "page": str(page), "opened": bool(opened)})
        return
    for path in files:
        if path.suffix != ".png":
            screen.line(f"written: {_near(path)}")
    pictures = sum(path.suffix == ".png" for path in files)
    if pictures:
        screen.line(f"written: {pictures} charts beside it, for report.md")
    if options["open"] and not opened:
        screen.line(f"no browser here: open {page.resolve().as_uri()}")


def _near(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
