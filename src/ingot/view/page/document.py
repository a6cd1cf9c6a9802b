"""The whole page: one file that asks for nothing, with a policy under which nothing but its own scripts can run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from ingot.core.log import logs_in
from ingot.version import __version__
from ingot.view.page import chain, history, listings, palette, render, results, sections
from ingot.view.page.book import Book
from ingot.view.page.entries import entries
from ingot.view.page.facts import Page
from ingot.view.page.figures import Figure
from ingot.view.page.html import Html, code, join, link, tag

Part = tuple[str, str, Html | None]


def report_page(page: Page) -> tuple[str, list[Figure]]:
    """The page of one report, and the charts that it shows."""
    groups = {
        "quality": ("Quality against size", sections.quality(page), []),
        "waterfall": ("Quality by step", list(chain.figures(page)), []),
        "tasks": ("Tasks", sections.asked_for(page), [table] if (table := listings.tasks(page)) is not None else []),
        "speed": ("Speed", sections.speed(page), []),
        "training": ("Training", *sections.training(page)),
        "data": ("Data", sections.data(page), []),
        "calibration": ("Calibration", sections.calibration(page), []),
    }
    charts = {
        name: (name, title, sections.drawn(name, title, drawn, more)) for name, (title, drawn, more) in groups.items()
    }
    parts: list[Part] = [
        ("results", "Results", results.results(page)),
        ("gates", "Gates", results.gates(page)),
        charts["quality"],
        charts["waterfall"],
        charts["tasks"],
        ("answers", "Answers", listings.answers(page)),
        charts["speed"],
        charts["training"],
        charts["data"],
        charts["calibration"],
        ("lineage", "Lineage", sections.lineage(page)),
        ("history", "History", history.standing(page)),
        ("methods", "How it was measured", listings.methods(page)),
        ("entries", "Registry entries", entries(page.book)),
    ]
    head = join(results.summary(page), results.problems(page))
    kicker = f"Report of the spec {page.spec}, {str(page.entry.receipt['timings']['finished'])[:10]}"
    figures = [figure for _, drawn, _ in groups.values() for figure in drawn]
    return whole(page.target, kicker, head, parts, page.book), figures


def whole(title: str, kicker: str, head: Html, parts: Sequence[Part], book: Book) -> str:
    """A page around its parts."""
    shown = [(name, words, body) for name, words, body in parts if body is not None]
    contents = tag("ul", [tag("li", link(f"#{name}", words)) for name, words, _ in shown])
    body = join(
        link("#main", "To the results", class_="skip"),
        tag(
            "header",
            tag("div", tag("p", kicker, class_="kicker"), tag("h1", title), _switch(), class_="wrap"),
            class_="top",
        ),
        tag("nav", tag("div", contents, class_="wrap"), class_="contents", aria_label="Contents"),
        tag("main", head, [part for _, _, part in shown], id="main", class_="wrap"),
        tag("footer", tag("div", _footer(book), class_="wrap")),
    )
    scripts = [render.bundle(), asset("page.js")]
    style = palette.css() + asset("page.css")
    top = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    ended = [tag("script", Html(script)) for script in scripts]
    return f"<!doctype html>\n{tag('html', tag('head', top), tag('body', body, ended), lang='en')}\n"


def policy(scripts: Sequence[str]) -> str:
    """What a browser lets the page do: run these scripts and no other, use its own styles, ask for nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def asset(name: str) -> str:
    """A file that belongs to the page."""
    return (files("ingot.view.page") / "assets" / name).read_text("utf-8")


def _switch() -> Html:
    return tag("button", "Dark paper", type="button", class_="theme", hidden=True)


def _footer(book: Book) -> Html:
    """What the page was rendered from: the same facts give the same bytes, so no time of rendering stands here."""
    logs = []
    for log in logs_in(book.project.root / "registry"):
        checkpoint = log.checkpoint()
        if checkpoint is not None:
            logs.append(f"{log.origin} up to entry {checkpoint.size - 1}")
    said = f"Rendered by ingot {__version__} from {'; '.join(logs) or 'no log'}. "
    rest = join(
        "A page is a view: nothing was measured for it. ", code("doit audit"), " proves the log that it was made from."
    )
    return tag("p", said, rest)
