"""The entries that a page's numbers come from: all that is recorded of each, and how to read it in the log."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ingot.core.acceptance import words
from ingot.core.quantities import duration_text, number_text, size_text
from ingot.view.page import html
from ingot.view.page.book import Book, Entry
from ingot.view.page.figures import facts, section, word
from ingot.view.page.html import Child, Html, code, join, link, tag
from ingot.view.runtimes import timed

_PRESENCE = {
    "present": ("ok", "here and whole"),
    "missing": ("warn", "not in the store"),
    "damaged": ("bad", "damaged"),
    "not written": ("note", "not written, only measured as it flowed"),
}


def entries(book: Book) -> Html:
    """One section for all entries; each opens when something leads to it."""
    told = tag(
        "p",
        "Every number above leads to one of these builds. The log is append-only and signed; ",
        code("doit audit"),
        " proves that no entry was altered and that artifacts are what their entries say.",
    )
    return section("entries", "Registry entries", told, [_entry(book, entry) for entry in book.entries])


def _entry(book: Book, entry: Entry) -> Html:
    title = tag("summary", code(entry.target), f" {entry.receipt['kind']} ", tag("small", entry.place))
    return tag(
        "details",
        title,
        facts(list(_facts(book, entry))),
        _inputs(book, entry),
        _metrics(entry),
        _files(entry),
        _params(entry),
        class_="entry",
        id=entry.id,
    )


def _facts(book: Book, entry: Entry) -> Iterator[tuple[Child, Child]]:
    receipt, timings = entry.receipt, entry.receipt["timings"]
    yield "target", code(entry.target)
    if "accepted" in receipt:
        yield "accepted", words(receipt)
    yield "log entry", code(f"{receipt['origin']}#{receipt['index']}")
    level, said = _PRESENCE[entry.presence]
    yield "artifact", join(word(level, said), f" {'; '.join(entry.damage)}" if entry.damage else None)
    yield "digest", code(entry.digest)
    yield "key", code(receipt["key"])
    yield (
        "kind",
        f"{receipt['kind']}, revision {receipt['revision']}, {str(receipt['reproducibility']).replace('_', ' ')}",
    )
    wall = f" in {duration_text(timings['wall_s'])}" if timings.get("wall_s") is not None else ""
    yield "built", f"{str(timings['finished'])[:19].replace('T', ' ')} UTC{wall}"
    if timings.get("peak_anon_bytes"):
        yield "peak memory", size_text(timings["peak_anon_bytes"])
    yield "on", _machine(receipt)
    tools = receipt["key_parts"].get("tools") or {}
    if tools:
        yield "tools", ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
    commit = receipt["git"].get("commit")
    if commit:
        yield "git", f"{commit[:12]}{'' if receipt['git'].get('clean') else ', with changes'}"
    yield "read it", [join(tag("br") if at else None, code(line)) for at, line in enumerate(commands(book, entry))]


def commands(book: Book, entry: Entry) -> Iterator[str]:
    """The commands that show an entry: ours where it is its target's newest result, and its line of the log."""
    newest = book.project.index.latest.get(entry.target)
    if newest is not None and newest["digest"] == entry.digest:
        yield f"doit show {shlex.quote(entry.target)}"
    folder = str(entry.receipt["origin"]).rpartition("/")[2]
    yield f"sed -n {int(entry.receipt['index']) + 1}p registry/{folder}/log.jsonl | jq ."


def _machine(receipt: Any) -> str:
    environment = receipt["environment"]
    parts = [f"{environment.get('system', '?')} {environment.get('machine', '')}".strip()]
    if environment.get("cpus"):
        parts.append(f"{environment['cpus']} processors")
    parts += [f"{environment['threads']} threads"] if environment.get("threads") else []
    hardware = timed(receipt).get("hardware") or {}
    parts += [str(hardware["processor"])] if "processor" in hardware else []
    parts += [f"network {environment['network']}"] if environment.get("network") else []
    parts.append(f"Python {environment.get('python', '?')}, ingot {environment.get('ingot', '?')}")
    return "; ".join(parts)


def _inputs(book: Book, entry: Entry) -> Html | None:
    rows: list[Sequence[Child]] = []
    for role, target, digest in entry.inputs():
        found = book.known(target, digest)
        name = code(target) if found is None else link(f"#{found.id}", code(target))
        rows.append([role, name, code(digest[:16])])
    return html.table(f"Inputs of {entry.target}", ["role", "target", "digest"], rows) if rows else None


def _metrics(entry: Entry) -> Html | None:
    rows: list[Sequence[Child]] = []
    ids = []
    for name, metric in sorted(entry.receipt["metrics"].items()):
        ends = ", ".join(number_text(end) for end in metric.get("interval") or ())
        count = number_text(metric["n"]) if metric.get("n") is not None else ""
        between = f"[{ends}]" if ends else ""
        rows.append([code(name), number_text(metric["value"]), _unit(metric), between, count, metric["method"]])
        ids.append(entry.id_of(name))
    titles = ["metric", "value", "unit", "95 % interval", "n", "how it was measured"]
    return html.table(f"Metrics of {entry.target}", titles, rows, numbers=(1, 4), ids=ids) if rows else None


def _unit(metric: Any) -> str:
    return "" if metric["unit"] == "1" else str(metric["unit"])


def _files(entry: Entry) -> Html | None:
    files = entry.receipt["files"]
    rows = [[code(file["path"]), size_text(file["size"]), code(str(file["sha256"])[:16])] for file in files[:20]]
    more = f", {len(files) - 20} more not shown" if len(files) > 20 else ""
    return (
        html.table(f"Files of {entry.target}{more}", ["path", "size", "sha256"], rows, numbers=(1,)) if rows else None
    )


def _params(entry: Entry) -> Html | None:
    params = entry.receipt["key_parts"].get("params")
    if not params:
        return None
    shown = json.dumps(params, indent=2, sort_keys=True, ensure_ascii=False)
    return tag("details", tag("summary", "Parameters"), tag("pre", shown, tabindex=0))
