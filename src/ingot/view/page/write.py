"""A report as a folder that can be sent: the page, its Markdown with pictures, its JSON, a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ingot.core import disk
from ingot.view.page import card, document, jsonform, markdown, overview, render
from ingot.view.page.facts import Page
from ingot.view.page.overview import Overview


def reports(root: Path) -> Path:
    """Where pages are written unless a folder is named."""
    return root / "cache" / "reports"


def default_folder(root: Path, target: str) -> Path:
    """Where a report is written unless a folder is named: ``cache/reports/SPEC/NAME``, which can be deleted."""
    spec, _, name = target.partition(":")
    return reports(root) / file_name(spec) / file_name(name)


def file_name(name: str) -> str:
    """A name as that of a file: whoever signed a log may have called a target anything."""
    plain = re.sub(r"[^A-Za-z0-9._@+-]", lambda found: f"-{ord(found[0]):x}-", name)
    return re.sub(r"^\.+|^$", "-", plain)


def report(page: Page, folder: Path, cards: Sequence[str]) -> list[Path]:
    """Write ``report.html``, ``report.md`` with its pictures, ``report.json``, ``README.md`` and the cards asked for.

    Everything is rendered before the first file is written. UsageError (E-TARGET) for a card of no candidate.
    """
    render.require()
    rows = [card.chosen(page, wanted) for wanted in cards] or [card.chosen(page, None)]
    page_text, figures = document.report_page(page)
    files: dict[str, bytes] = {
        "report.html": page_text.encode(),
        "report.md": markdown.report(page, figures).encode(),
        "report.json": _json(jsonform.report(page)),
        "README.md": card.card(page, rows[0]).encode(),
    }
    files |= {figure.file: render.png(figure.spec) for figure in figures}
    if cards:
        files |= {f"cards/{file_name(row.name)}/README.md": card.card(page, row).encode() for row in rows}
    return written(folder, files)


def registry(known: Overview, folder: Path) -> list[Path]:
    """Write the page over the whole registry, and what it shows as JSON."""
    render.require()
    page = overview.page(known).encode()
    return written(folder, {"registry.html": page, "registry.json": _json(overview.to_json(known))})


def written(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files into a folder, each whole or not at all; those of ours that are there are replaced."""
    paths = []
    with disk.explained(folder):
        for name, content in files.items():
            path = folder / name
            disk.make_dirs(path.parent)
            disk.write_file_atomic(path, content, durable=False)
            paths.append(path)
    return paths


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
