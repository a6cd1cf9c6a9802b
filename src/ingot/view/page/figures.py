"""A chart on a page: a picture that every browser shows, what brings it to life, and its numbers as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingot.view.page import html, render
from ingot.view.page.html import Child, Html, join, tag


@dataclass(frozen=True)
class Figure:
    """One chart with its title, what to look for in it, and its numbers as a table."""

    id: str
    title: str
    note: str
    spec: dict[str, Any]
    titles: Sequence[Child]
    rows: Sequence[Sequence[Child]]
    numbers: Sequence[int] = ()

    @property
    def file(self) -> str:
        """The name of its picture beside ``report.md``."""
        return f"{self.id}.png"

    def html(self) -> Html:
        """The chart as it stands in a page."""
        caption = tag("figcaption", self.title, tag("small", self.note) if self.note else None)
        data = html.table(f"{self.title}: the numbers", self.titles, self.rows, numbers=self.numbers)
        return tag(
            "figure",
            caption,
            tag("div", render.svg(self.id, self.spec), class_="drawn"),
            tag("div", class_="live", hidden=True),
            tag("script", script_json(self.spec), type="application/json"),
            tag("details", tag("summary", "The numbers as a table"), data),
            id=self.id,
            data_chart=True,
        )


def script_json(value: object) -> Html:
    """JSON that can stand in a script element: no ``<`` in it ends the element or begins a comment."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def section(name: str, title: str, *children: Child) -> Html:
    """A part of the page under a heading of its own."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *children, id=name, aria_labelledby=f"{name}-title")


def grid(figures: Sequence[Figure]) -> Html:
    """Charts side by side where there is room."""
    return tag("div", [figure.html() for figure in figures], class_="grid")


def word(level: str, text: str, href: str | None = None) -> Html:
    """A state in words, in its colour."""
    name = f"word {level}"
    return tag("span", text, class_=name) if href is None else html.link(href, text, class_=name)


def listed(items: Sequence[Child]) -> Html:
    """A plain list."""
    return tag("ul", [tag("li", item) for item in items])


def facts(pairs: Sequence[tuple[Child, Child]]) -> Html:
    """Names with their values."""
    return tag("dl", [join(tag("dt", name), tag("dd", value)) for name, value in pairs])
