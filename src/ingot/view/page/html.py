"""Markup from values: every text is escaped where it is put in, so what a model answered stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Union

#: What never stands in a page as it is: control characters, and those that turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_EMPTY = {"br", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Union[str, None, Iterable["Child"]]  # noqa: UP007  # names itself
Value = str | int | float | bool | None


def text(value: object) -> Html:
    """A value as text: escaped, without characters that could hide or turn what is beside it."""
    return Html(escape(_UNSEEN.sub("\ufffd", str(value)), quote=True))


def join(*children: Child) -> Html:
    """Children one after another; plain strings are escaped, None is nothing."""
    return Html("".join(_parts(children)))


def tag(name: str, /, *children: Child, **attributes: Value) -> Html:
    """An element: ``class_`` and ``data_x`` are written ``class`` and ``data-x``; None and False leave one out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    inner = "" if name in _EMPTY else f"{join(*children)}</{name}>"
    return Html(f"<{name}{written}>{inner}")


def link(href: str, *children: Child, **attributes: Value) -> Html:
    """A link."""
    return tag("a", *children, href=href, **attributes)


def code(value: object) -> Html:
    """A name or a command as it is typed."""
    return tag("code", str(value))


def anchor(*parts: object) -> str:
    """An id of an element; different parts give different ids."""
    return ".".join(re.sub(r"[^A-Za-z0-9_]", lambda found: f"-{ord(found[0]):x}-", str(part)) for part in parts)


def table(
    caption: Child,
    titles: Sequence[Child],
    rows: Sequence[Sequence[Child]],
    *,
    numbers: Iterable[int] = (),
    ids: Sequence[str] = (),
) -> Html:
    """A table that scrolls in itself: its first column heads the rows; columns in ``numbers`` are aligned right.

    ``ids`` are those of its rows, where something leads to them.
    """
    kinds = ["n" if at in set(numbers) else None for at in range(len(titles))]
    head = tag("tr", [tag("th", title, scope="col", class_=kind) for title, kind in zip(titles, kinds, strict=True)])
    names: Sequence[str | None] = ids or [None] * len(rows)
    body = [
        tag(
            "tr",
            tag("th", first, scope="row"),
            [tag("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True)],
            id=name,
        )
        for (first, *rest), name in zip(rows, names, strict=True)
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=_plain(join(caption)))


def _plain(markup: Html) -> Html:
    """The words of markup, for an attribute: they are escaped already."""
    return Html(re.sub(r"<[^>]*>", "", markup))


def _parts(children: Child) -> Iterable[str]:
    if children is None:
        return
    if isinstance(children, str):
        yield children if isinstance(children, Html) else text(children)
        return
    for child in children:
        yield from _parts(child)


def _attribute(key: str, value: Value) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{value if isinstance(value, Html) else text(value)}"'
