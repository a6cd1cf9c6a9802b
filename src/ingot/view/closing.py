"""The closing page of a run: reports, artifacts, gates, and the commands that come next with real names and paths."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ingot.core.gates import Verdict
from ingot.core.graph import Node, input_ids
from ingot.core.key import NOT_INSTALLED
from ingot.core.plan import tool_version
from ingot.core.report_view import table
from ingot.core.session import Session
from ingot.core.table import Column, Table
from ingot.view.board import Board
from ingot.view.text import Line, Piece, duration, join, plural, size

#: More artifacts than this are counted, not listed.
_ARTIFACTS_MAX = 20
_PYDOC_QUESTION = "What does textwrap.dedent do?"
#: A slot of a template, ``{name}`` or ``{name.field}``, or a brace written twice.
_SLOT = re.compile(r"\{\{|\}\}|\{(\w+)(?:\.(\w+))?\}")
_QUESTION = "What is the capital of France?"
#: Exports that answer at once on any machine, and what runs them.
_TALKERS = {"gguf": "llama-cpp-python", "onnx": "onnxruntime"}

Item = Line | Table

#: What a project without a spec is told, by a run and by a plan.
NO_SPECS = "no specs: doit new NAME writes a first one"


def nothing_to_do(counts: Mapping[str, int], seconds: float, elsewhere: int = 0) -> Line:
    """``nothing to do: 14 targets fresh, 1 virtual, 1 evicted (0.21 s)``, by how many are what.

    ``elsewhere`` of the fresh ones were built by another process meanwhile.
    """
    end = f"{duration(seconds)}, {elsewhere} of them built by another process meanwhile" if elsewhere else ""
    first, *rest = [(count, word) for word, count in counts.items() if count] or [(0, "fresh")]
    shown = ", ".join([f"{plural(first[0], 'target')} {first[1]}", *(f"{count} {word}" for count, word in rest)])
    return [("nothing to do: ", ""), (shown, "green"), (f" ({end or duration(seconds)})", "dim")]


def closing_page(session: Session, board: Board, width: int) -> Iterator[Item]:
    """Everything after the last target of a run in which something was built, restored or failed."""
    for node in _at_hand(session, board):
        if node.kind == "report":
            yield from _report(session, node.id, width)
    yield from _artifacts(session, board, width)
    gates = list(gate_lines(session, board))
    yield from [[("", "")], *gates] if gates else []
    yield from _next(session, board)


def _at_hand(session: Session, board: Board, *, changed: bool = False) -> list[Node]:
    """The targets of this run whose result is known, gates passed or not; with ``changed`` those that are new."""
    names = [
        name for name in board.targets if name in session.outcomes and board.fates.get(name, "skipped") != "skipped"
    ]
    old = ("fresh", "virtual") if changed else ()
    return [session.project.nodes[name] for name in names if session.outcomes[name].fate not in old]


def gate_lines(session: Session, board: Board) -> Iterator[Line]:
    """One line a limit: ``gate pass     0.0312 [0.028, 0.035], needs ≤ 0.5  report.gguf@Q8_0.kl_divergence``."""
    for node in _at_hand(session, board):
        for verdict in session.verdicts.get(node.id, ()):
            yield _gate_line("" if board.short else f"{node.spec}:", verdict)


def _gate_line(prefix: str, verdict: Verdict) -> Line:
    style = {"pass": "green", "warn": "yellow", "fail": "red", "unknown": "yellow", "none": "dim"}[verdict.word]
    word = "FAIL" if verdict.word == "fail" else verdict.word
    side = "≤" if verdict.side == "max" else "≥"
    value = "no value" if verdict.value is None else f"{verdict.value:.4g}"
    ends = "" if verdict.interval is None else f" [{verdict.interval[0]:.4g}, {verdict.interval[1]:.4g}]"
    why = f": {verdict.found}" if verdict.value is None else "".join(f"; {it}" for it in verdict.notes)
    text = f"  {value}{ends}, needs {side} {verdict.limit:g}  {prefix}{verdict.what}{why}"
    return [(f"gate {word:<7}", style), (text, "")]


def _report(session: Session, name: str, width: int) -> Iterator[Item]:
    receipt = session.outcomes[name].receipt
    path = session.project.store.object_path(str(receipt["digest"])) / "report.json"
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return
    shown = table(report, _names(receipt), width)
    yield [("", "")]
    yield [(name, "bold")]
    yield shown
    for note in shown.notes:
        yield [(note, "dim")]


def _names(receipt: Mapping[str, Any]) -> dict[str, list[str]]:
    """Digest → names of the inputs of a report, without the spec."""
    names: dict[str, list[str]] = {}
    for given in receipt["inputs"].values():
        for item in given if isinstance(given, list) else [given]:
            found = names.setdefault(str(item["digest"]), [])
            short = str(item["target"]).partition(":")[2]
            if short not in found:
                found.append(short)
    return names


def _artifacts(session: Session, board: Board, width: int) -> Iterator[Item]:
    shown = [node for node in _at_hand(session, board, changed=True) if not node.hidden]
    if not shown:
        return
    rows = [(node.id, size(_bytes(session, node)), _place(session, node)) for node in shown[-_ARTIFACTS_MAX:]]
    columns = (
        Column("target", "target", "left", 1),
        Column("size", "size", "right", 0),
        Column("path", "path", "left", 0),
    )
    listed = Table(columns, tuple(rows))
    yield [("", "")]
    yield listed if listed.width() <= width else listed.without("target")
    if len(shown) > _ARTIFACTS_MAX:
        yield [(f"and {len(shown) - _ARTIFACTS_MAX} more in cache/latest/", "dim")]


def _place(session: Session, node: Node) -> str:
    """Where an artifact lies; what was streamed lies nowhere."""
    if session.outcomes[node.id].receipt.get("stored") is False and node.id in session.project.virtual:
        return f"not written (doit materialize {node.id} does)"
    return artifact_path(session, node)


def _bytes(session: Session, node: Node) -> int:
    return sum(int(file["size"]) for file in session.outcomes[node.id].receipt["files"])


def artifact_path(session: Session, node: Node) -> str:
    """The path of an artifact for people, from the project: its one file, its one folder, or all of it."""
    names = [str(file["path"]) for file in session.outcomes[node.id].receipt["files"]]
    folder = Path("cache", "latest", node.spec, node.name)
    tops = {name.partition("/")[0] for name in names}
    if len(tops) == 1:
        (top,) = tops
        return str(folder / top) + ("" if top in names else "/")
    return f"{folder}/"


def _next(session: Session, board: Board) -> Iterator[Line]:
    commands = list(_commands(session, board))
    if not commands:
        return
    pad = max(len(label) for label, _ in commands)
    yield [("", "")]
    for label, command in commands:
        line: list[Piece] = [(f"{label:<{pad}}", "dim"), (command, "cyan")]
        yield join([line[:1], line[1:]])


def _commands(session: Session, board: Board) -> Iterator[tuple[str, str]]:
    """(what for, the command as it can be pasted)."""
    at_hand, changed = _at_hand(session, board), _at_hand(session, board, changed=True)
    if any(name not in session.outcomes for name in board.names("failed")):
        yield "what is left, and why", "doit plan"
        if session.refused is None and _others(session, board):
            yield "go on with the others", "doit -c"
    reports = [node for node in at_hand if node.kind == "report"]
    for node in (reports or [node for node in changed if not node.hidden])[-1:]:
        yield "what was measured, and how", f"doit show {shlex.quote(node.id)}"
    for node in reports[-1:]:
        yield "the same as a page", f"doit report {shlex.quote(node.id)} --open"
    for node in changed[-1:]:
        yield "how it came to be", f"doit history {shlex.quote(node.spec)}"
    models = [node for node in (*changed, *at_hand) if node.kind in _TALKERS]
    models = [node for node in models if tool_version(_TALKERS[node.kind]) != NOT_INSTALLED]
    # what this run changed, and of that what answers soonest; of equals the first
    for node in sorted(models, key=lambda node: (node not in changed, node.kind))[:1]:
        question = _question(session.project.nodes.values(), node.spec)
        yield "chat with it", f"doit chat {shlex.quote(node.id)} {_quoted(question)}"


def _others(session: Session, board: Board) -> list[str]:
    """The targets that were not looked at and that nothing which failed stands in the way of."""
    barred, others = set(board.names("failed", "skipped")), []
    for name in board.targets:
        if name in board.fates:
            continue
        if barred.isdisjoint(input_ids(session.project.nodes[name])):
            others.append(name)
        else:
            barred.add(name)
    return others


def _question(nodes: Iterable[Node], spec: str) -> str:
    """What to ask a model of the spec: the first question of its templates, else one that its data can answer."""
    own = [node for node in nodes if node.spec == spec]
    for node in own:
        listed = node.params.get("sources")
        for source in listed if isinstance(listed, list) else []:
            if isinstance(source, dict) and (question := _templated(source.get("templates"))) is not None:
                return question
    docstrings = any(source.get("python_stdlib") for node in own for _, source, _ in node.sources)
    return _PYDOC_QUESTION if docstrings else _QUESTION


def _templated(templates: Any) -> str | None:
    """The first prompt of the first case, with the first filler of each slot."""
    if not isinstance(templates, dict):
        return None
    case = next(iter(templates["cases"].values()))
    slots = templates["slots"] | case["slots"]

    def part(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0][0]
        filler = slots[found[1]][0]
        return str(filler[found[2]] if found[2] else filler)

    return _SLOT.sub(part, case["prompts"][0])


def _quoted(text: str) -> str:
    """Text as one word of a command line: in double quotes, unless a shell would change it there."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
