"""One page over the whole registry: specs, their variants, measurements over time, what is active and last good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from ingot.core.report_view import names_of
from ingot.core.standing import Standing
from ingot.view.page import html, verdicts
from ingot.view.page.book import EVALUATIONS, Book, Entry, Score
from ingot.view.page.document import Part, whole
from ingot.view.page.entries import entries
from ingot.view.page.figures import Figure, section, word
from ingot.view.page.history import TOLD, over_time, told
from ingot.view.page.html import Child, Html, anchor, code, join, link, tag
from ingot.view.page.jsonform import place
from ingot.view.page.measures import MAIN, measure
from ingot.view.page.results import number

if TYPE_CHECKING:
    from ingot.core.gates import Verdict
    from ingot.core.project import Project

#: Charts of metrics over time, at most, a spec.
_CHARTS = 2
#: The newest entries that are listed.
_RECENT = 60
_STATES = {"present": "ok", "missing": "warn", "damaged": "bad", "not written": "note"}


@dataclass(frozen=True)
class Target:
    """What stands for one target of a spec."""

    id: str
    newest: Entry
    active: str | None
    last_good: str | None

    @property
    def name(self) -> str:
        """Its name within the spec."""
        return self.id.partition(":")[2]

    @property
    def row(self) -> str:
        """The id of its row of the page."""
        return anchor("target", self.id)


class Overview:
    """The facts of the page. ``verdicts``: the gates of each report that a spec of today declares."""

    def __init__(self, project: Project, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
        self.book = Book(project)
        self.verdicts = verdicts
        self._folds = Standing(project, self.book.lookup)

    @cached_property
    def specs(self) -> dict[str, list[Target]]:
        """The targets of each spec that the log knows, without the steps of reports."""
        found: dict[str, list[Target]] = {}
        for name in sorted(self.book.project.index.latest):
            spec, _, own = name.partition(":")
            receipt = self.book.lookup.newest(name) if "." not in own.partition("@")[0] else None
            if receipt is not None:
                found.setdefault(spec, []).append(self._target(name, receipt))
        return found

    def _target(self, name: str, receipt: Mapping[str, Any]) -> Target:
        active, good = self._folds.active(name), self._folds.last_good(name)
        entry = self.book.take(receipt)
        return Target(
            name, entry, None if active is None else active.digest, None if good is None else str(good["digest"])
        )

    def reports(self, spec: str) -> list[Target]:
        """The reports of a spec."""
        return [target for target in self.specs[spec] if target.newest.receipt["kind"] == "report"]

    def variants(self, report: Target) -> Iterator[tuple[str, str, Entry]]:
        """(candidate's name, its digest, its measurement) of everything that a report measured."""
        names = names_of(report.newest.receipt)
        for role, target, digest in report.newest.inputs():
            measured = self.book.find(target, digest) if role == EVALUATIONS else None
            if measured is None or measured.receipt["kind"] != "evaluate":
                continue
            candidate = next((item for role, _, item in measured.inputs() if role == "candidate"), "")
            yield ", ".join(names.get(candidate, ())) or candidate[:12], candidate, measured


def page(overview: Overview) -> str:
    """The page."""
    own = [(anchor("spec", spec), spec, _spec(overview, spec)) for spec in overview.specs]
    recent = "recent", "Newest entries", _recent(overview)
    parts: list[Part] = [("specs", "Specs", _specs(overview)), *own, recent]
    parts.append(("entries", "Registry entries", entries(overview.book)))
    count = len(overview.specs)
    head = tag(
        "p",
        f"{count} spec{'s' * (count != 1)} in the logs, {len(overview.book.entries)} results told of. ",
        class_="lead",
    )
    return whole("Registry", "Everything that was built and measured", head, parts, overview.book)


def _specs(overview: Overview) -> Html:
    rows = []
    for spec, targets in overview.specs.items():
        newest = max(str(target.newest.receipt["timings"]["finished"]) for target in targets)
        active = sum(target.active is not None for target in targets)
        absent = [target.name for target in targets if target.newest.presence in ("missing", "damaged")]
        state = word("warn", f"not whole: {', '.join(absent)}") if absent else word("ok", "all here")
        rows.append(
            [
                link(f"#{anchor('spec', spec)}", spec),
                str(len(targets)),
                newest[:16].replace("T", " "),
                _gates_of(overview, spec),
                str(active),
                state,
            ]
        )
    titles = ["spec", "targets", "last built (UTC)", "gates", "active", "artifacts"]
    return section("specs", "Specs", html.table("Every spec that the logs know", titles, rows, numbers=(1, 4)))


def _gates_of(overview: Overview, spec: str) -> Html:
    listed = [verdict for report in overview.reports(spec) for verdict in overview.verdicts.get(report.id, ())]
    if not listed:
        return Html("none")
    return word(*verdicts.standing(listed))


def _spec(overview: Overview, spec: str) -> Html:
    parts: list[Child] = []
    for report in overview.reports(spec):
        parts += [
            tag("h3", code(report.id)),
            tag("p", code(f"doit report {report.id} --open"), " shows all of it"),
            _variants(overview, report),
        ]
    figures = list(islice(_over_time(overview, spec), _CHARTS))
    parts += [tag("div", [figure.html() for figure in figures], class_="grid")] if figures else []
    parts += [tag("h3", "Targets"), _targets(overview.specs[spec])]
    return section(anchor("spec", spec), spec, parts)


def _variants(overview: Overview, report: Target) -> Html:
    listed = list(overview.variants(report))
    known = {name for _, _, entry in listed for name in entry.receipt["metrics"]}
    columns = [name for name in MAIN if name in known]
    judged = overview.verdicts.get(report.id, ())
    rows = [
        [
            link(f"#{entry.id}", code(name)),
            *(
                number(Score(column, entry.receipt["metrics"][column], entry))
                if column in entry.receipt["metrics"]
                else "–"
                for column in columns
            ),
            [
                [word(verdicts.level(each), f"{verdicts.said(each)} {each.metric}"), " "]
                for each in judged
                if each.target == f"{report.name}.{name}"
            ],
        ]
        for name, _, entry in listed
    ]
    titles = ["variant", *(measure(column).title for column in columns), "gates"]
    return tag(
        "div",
        html.table(f"Variants of {report.id}", titles, rows, numbers=range(1, len(columns) + 1)),
        class_="results",
    )


def _targets(targets: Sequence[Target]) -> Html:
    rows = [
        [
            link(f"#{target.newest.id}", code(target.name)),
            str(target.newest.receipt["kind"]),
            str(target.newest.receipt["timings"]["finished"])[:16].replace("T", " "),
            code(target.newest.digest[:12]),
            _other(target.active, target.newest.digest, "–"),
            _other(target.last_good, target.newest.digest, "none"),
            word(_STATES[target.newest.presence], target.newest.presence),
        ]
        for target in targets
    ]
    titles = ["target", "kind", "built (UTC)", "newest", "active", "last good", "artifact"]
    return html.table(
        "Targets: newest, active and last good result", titles, rows, ids=[target.row for target in targets]
    )


def _other(digest: str | None, newest: str, none: str) -> Child:
    if digest is None:
        return none
    return (
        join(code(digest[:12]), " the newest")
        if digest == newest
        else join(code(digest[:12]), " ", word("warn", "another"))
    )


def _over_time(overview: Overview, spec: str) -> Iterator[Figure]:
    for report in overview.reports(spec):
        yield from over_time(overview.book.lookup, report.id, [name for name, _, _ in overview.variants(report)])


def _recent(overview: Overview) -> Html:
    every = list(overview.book.project.registry.entries())[-_RECENT:]
    listed = [entry for entry in reversed(every) if entry.type != "origin"]
    targets = ["target", *(code(entry.statement["subject"][0]["name"]) for entry in listed)]
    titles, *rows = [
        [place, what, target, *more]
        for target, (place, what, *more) in zip(targets, [TOLD, *map(told, listed)], strict=True)
    ]
    return section(
        "recent",
        "Newest entries",
        html.table(f"The newest {len(rows)} entries of all logs, newest first", titles, rows),
    )


def to_json(overview: Overview) -> dict[str, Any]:
    """The page's facts for programs."""
    return {
        "format": 1,
        "specs": [
            {"spec": spec, "targets": [_target_json(target) for target in targets]}
            for spec, targets in overview.specs.items()
        ],
    }


def _target_json(target: Target) -> dict[str, Any]:
    return {
        "target": target.id, "kind": target.newest.receipt["kind"], "digest": target.newest.digest,
        "entry": place(target.newest), "artifact": target.newest.presence, "active": target.active,
        "last_good": target.last_good,
    }  # fmt: skip
