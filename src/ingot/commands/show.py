"""``doit show``: everything that is recorded of a target's newest result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_readable, remedy
from ingot.commands.screen import (
    Screen,
    duration_text,
    measured_text,
    number_text,
    plural,
    size_text,
    when_text,
)
from ingot.core.acceptance import words
from ingot.core.lookup import place_text
from ingot.view.parities import compared
from ingot.view.runtimes import of_baseline, ran_on, side_by_side

if TYPE_CHECKING:
    from ingot.core.project import Project

Json = Mapping[str, Any]

#: What an active result is compared with.
_OTHERS = ("latest", "last_good")
#: In fewer columns intervals have no column of their own.
_WIDE = 100
#: More targets of one pass are counted.
_NAMED = 3
#: Of a note that is a list or a mapping so many items are shown, the others are counted.
_NOTED = 5


class Show(IngotCommand):
    """Print one receipt, or what is active."""

    name = "show"
    doc_purpose = "show what is recorded of a target: files, metrics, inputs, key"
    doc_usage = "SPEC:TARGET [--json] | --active SPEC[:TARGET] [--json]"
    doc_description = (
        "Reads the log only: it works although a spec is broken or the artifact is not present. --active shows which "
        "digest of each target was promoted, since when, and whether it is also the newest result (latest) and the "
        "newest one that no recorded gate failed for (last good)."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, 1)
    cmd_options = (JSON_OPTION, flag("active", "show which results are active (doit promote)"))

    def run(self, screen: Screen, options: Json, arguments: Sequence[str]) -> int:
        """0, or 2 when there is no such target or it was never built."""
        # The gates of today's specs are judged for a person only.
        log_alone = options["active"] or options["json"]
        project = registry.open_log() if log_alone else open_readable()
        if options["active"]:
            _show_active(screen, project, arguments[0], json=options["json"])
            keep_derived(project)
            return 0
        receipt = registry.receipt_of_target(project, arguments[0])
        if options["json"]:
            screen.json(receipt)
        else:
            _show(screen, project, receipt)
            _show_gates(screen, project, receipt)
        keep_derived(project)
        return 0


def _show_gates(screen: Screen, project: Project, receipt: Json) -> None:
    """What the gates of today's spec say of this very result, by what is recorded of it; nothing where it is bad."""
    from ingot.core.gatekeeper import Gatekeeper

    node = project.nodes.get(str(receipt["target"]))
    if node is not None:
        judged = Gatekeeper(project, {}, project.standing()).judge(node, receipt, pinned=True)
        if judged:
            screen.line()
        for item in judged:
            screen.line(f"gate: {item.verdict}")


def _show_active(screen: Screen, project: Project, name: str, *, json: bool) -> None:
    listed = registry.standing_of(project, name)
    if json:
        screen.json({"format": 1, "targets": listed})
        return
    screen.table(("target", "active", "since", "latest", "last good", "by"), [_standing_row(item) for item in listed])
    absent = [item for item in listed if item["present"] is False]
    if absent:
        screen.line()
    for item in absent:
        digest = item["active"]["digest"][:12]
        screen.line(f"note: {digest}, active for {item['target']}, is not in the store here or is damaged")


def _standing_row(item: Json) -> tuple[str, ...]:
    """One target; "yes" where the active digest is that one, else the digest that is."""
    active = item["active"]
    others = ["yes" if item[f"is_{name}"] else item[name]["digest"][:12] if item[name] else "–" for name in _OTHERS]
    if active is None:
        return item["target"], "–", "–", *others, "nothing was promoted"
    reason = f": {active['reason']}" if active["reason"] else ""
    by = f"{active['type']} {place_text(active)}{reason}"
    return item["target"], active["digest"][:12], when_text(active["time"]).removesuffix(" UTC"), *others, by


def _show(screen: Screen, project: Project, receipt: Json) -> None:
    screen.table(("", ""), list(_head(project, receipt)))
    for title, titles, rows, right in (
        ("runtimes side by side", *side_by_side(receipt)),
        ("compared with its source", *compared(receipt)),
        ("metrics", *_metric_table(screen, receipt)),
        ("notes", ("", ""), _notes(receipt), ()),
        ("inputs", ("role", "target", "digest"), _inputs(receipt), ()),
        ("files", ("path", "size", "sha256"), _files(receipt), (1,)),
        ("what the result depends on", ("", ""), _key_parts(receipt), ()),
    ):
        listed = list(rows)
        if listed:
            screen.line()
            screen.line(f"{title}:")
            screen.table(titles, listed, right)


def _head(project: Project, receipt: Json) -> Iterator[tuple[str, str]]:
    """The facts of one line each."""
    yield "target", str(receipt["target"])
    if "built_as" in receipt:
        yield "restored", f"found again, built as {receipt['built_as']} (the same content, built once)"
    if "accepted" in receipt:
        yield "accepted", f"{words(receipt)} (entry {place_text(receipt['accepted'])})"
    word = str(receipt["reproducibility"]).replace("_", " ")
    yield "kind", f"{receipt['kind']} (revision {receipt['revision']}, {word})"
    yield "artifact", _place(project, receipt)
    size = sum(int(file["size"]) for file in receipt["files"])
    predicted = receipt.get("predicted") or {}
    written = measured_text(size, predicted.get("bytes"), size_text)
    yield "size", f"{written} in {plural(len(receipt['files']), 'file')}"
    yield "digest", str(receipt["digest"])
    yield "key", str(receipt["key"])
    timings = receipt["timings"]
    took = measured_text(timings["wall_s"], predicted.get("wall_s"), duration_text)
    shared, resumed = receipt.get("shared_with"), timings.get("resumed_checkpoints")
    since = f" since its last checkpoint ({resumed} were there)" if resumed else ""
    along = f", in one pass with {_named(shared)}" if shared else ""
    yield "built", f"{when_text(receipt['built_at'])} in {took}{since}{along}"
    yield "peak memory", _memory(timings, predicted)
    if predicted:
        from ingot.core.predict import source_text

        yield "predicted from", source_text(predicted["n"], predicted["basis"])
    if devices := _devices(timings):
        yield "GPU", devices
    yield "environment", _environment(receipt["environment"])
    yield "git", _git(receipt["git"])
    yield "log", f"{receipt['origin']} entry {receipt['index']}"


def _place(project: Project, receipt: Json) -> str:
    """A path that can be pasted, or that there is none."""
    spec, _, name = str(receipt["target"]).partition(":")
    if not receipt["present"] and receipt.get("stored") is False:
        return f"not written, only measured ({_flowed(receipt)}; doit materialize {receipt['target']} writes it)"
    if not receipt["present"]:
        evicted = project.store.is_evicted(str(receipt["digest"]))
        what = "evicted by doit gc" if evicted else "not present in the store or damaged"
        return f"{what} ({remedy(project, str(receipt['target']))})"
    path = project.store.object_path(str(receipt["digest"]))
    if project.store.has_latest(spec, name, str(receipt["digest"])):
        path = project.store.root / "latest" / spec / name
    return os.path.relpath(path)


def _flowed(receipt: Json) -> str:
    """What a virtual target flowed into, or that there was a copy of it."""
    into = receipt.get("shared_with")
    return f"streamed into {', '.join(into)}" if into else "a scratch copy, dropped since"


def _memory(timings: Json, predicted: Json) -> str:
    anon, rss = timings.get("peak_anon_bytes"), timings.get("peak_rss_bytes")
    shown = measured_text(anon, predicted.get("peak_anon_bytes"), size_text)
    parts = [f"{shown} anonymous"] if shown else []
    parts += [] if rss is None else [f"{size_text(rss)} resident"]
    return ", ".join(parts) or "not measured"


def _devices(timings: Json) -> str:
    """What was measured of GPUs; empty where nothing was."""
    peak, energy = timings.get("peak_device_bytes"), timings.get("device_energy_j")
    parts = [] if peak is None else [f"peak memory {size_text(peak)}"]
    parts += [] if energy is None else [f"{number_text(energy / 3600)} Wh"]
    return ", ".join(parts)


def _environment(environment: Json) -> str:
    return (
        f"ingot {environment['ingot']}, Python {environment['python']}, {environment['system']} "
        f"{environment['machine']}, {environment['threads']} of {environment['cpus']} processors, "
        f"network: {environment['network']}"
    )


def _git(git: Json) -> str:
    if git.get("commit") is None:
        return "no commit"
    state = {True: "clean", False: "with uncommitted changes", None: "state not known"}[git.get("clean")]
    return f"{str(git['commit'])[:12]} ({state})"


def _metric_table(screen: Screen, receipt: Json) -> tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]:
    """Titles, rows and columns to align right. In a narrow terminal the interval goes with the method."""
    rows = list(_metrics(receipt))
    if screen.width is None or screen.width >= _WIDE:
        return ("name", "value", "unit", "95 % interval", "n", "how it was measured"), rows, (1, 4)
    short = [
        (name, value, unit, count, f"95 % interval {interval}; {method}" if interval else method)
        for name, value, unit, interval, count, method in rows
    ]
    return ("name", "value", "unit", "n", "how it was measured"), short, (1, 3)


def _metrics(receipt: Json) -> Iterator[tuple[str, ...]]:
    for name, metric in sorted(receipt["metrics"].items()):
        if of_baseline(name, receipt):
            continue
        interval = metric.get("interval")
        shown = f"[{number_text(interval[0])}, {number_text(interval[1])}]" if interval else ""
        count = f"{metric['n']:,}" if "n" in metric else ""
        unit = "" if metric["unit"] == "1" else metric["unit"]
        yield name, number_text(metric["value"]), unit, shown, count, metric["method"]


def _notes(receipt: Json) -> Iterator[tuple[str, str]]:
    """What the stage told beside numbers, whatever it is; each note on rows of its own."""
    for name, value in sorted(receipt.get("notes", {}).items()):
        if name == "parity" and compared(receipt)[1]:
            continue  # a table of its own
        if name == "runtime" and isinstance(value, Mapping):
            yield name, ", ".join(ran_on(value))
            continue
        found = list(_flat(value))
        for place, item in found[:_NOTED]:
            yield name, f"{place}: {item}" if isinstance(value, Mapping) and place else str(item)
        if len(found) > _NOTED:
            yield name, f"and {len(found) - _NOTED} more (doit show --json has all)"


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"


def _inputs(receipt: Json) -> Iterator[tuple[str, str, str]]:
    streamed = receipt.get("streamed") or {}
    for role, value in sorted(receipt["inputs"].items()):
        for item in [value] if isinstance(value, Mapping) else value:
            yield role, str(item["target"]), str(item["digest"])[:12] + (", streamed" if role in streamed else "")


def _files(receipt: Json) -> Iterator[tuple[str, str, str]]:
    for file in receipt["files"]:
        yield str(file["path"]), size_text(int(file["size"])), str(file["sha256"])[:12]


def _key_parts(receipt: Json) -> Iterator[tuple[str, str]]:
    for name, value in _flat(receipt["key_parts"]):
        if name not in ("format", "kind", "revision") and value not in ({}, []):
            yield name, str(value)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, scalar) pairs of a JSON value; empty mappings and lists count as values."""
    if isinstance(value, Mapping) and value:
        for name in sorted(value):
            yield from _flat(value[name], f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{index}" if prefix else str(index))
    else:
        yield prefix, value
