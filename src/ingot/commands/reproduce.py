"""``doit reproduce``: build again beside what is there, and compare the bytes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, open_project, select, value
from ingot.commands.screen import Screen, duration_text, number_text, plural
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.plan import Planned
    from ingot.core.project import Project
    from ingot.core.reproduction import Reproduction

_WIDTH = 9
#: To the beginning of the line, which is then empty.
_CLEAR = "\r\x1b[K"
#: So many targets are named of those that cannot be compared.
_NAMED = 8


class Reproduce(IngotCommand):
    """Build targets again and say whether the same bytes come out."""

    name = "reproduce"
    doc_purpose = "build targets again beside what is there, and compare the bytes"
    doc_usage = "SPEC[:TARGET] … [--keep FOLDER] [--json]"
    doc_description = (
        "Builds each target that is up to date once more, from the same inputs and under the same key, in a folder of "
        "its own, and compares the result with the one in force, which stays. What came out is recorded, with how far "
        "apart the two are where they differ. Exit code 1 when a kind that promises the same bytes gave others; of one "
        "whose bytes depend on the device a difference is told and is no failure. --keep leaves what came out "
        "differently in FOLDER."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, None)
    cmd_options = (JSON_OPTION, value("keep", "leave what came out differently in this folder"))

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 1 when a promise of the same bytes was broken; 2 wrong use, or nothing is up to date."""
        project = open_project()
        nodes = select(project, arguments)
        plan = project.plan(select(project, arguments, inputs=True))
        chosen = [plan[node.id] for node in nodes]
        ready = [item for item in chosen if can_be_compared(item)]
        if not ready:
            what = f"nothing of {', '.join(arguments)} is here that was built under its present key"
            raise UsageError("E-STALE", what, facts=[_lacking(item) for item in chosen[:_NAMED]])
        gone = {item.node.id: str(item.digest) for item in plan.values() if item.state == "evicted"}
        keep = None if options["keep"] is None else _empty_places(Path(options["keep"]), ready)
        quiet = bool(options["json"])
        found = []
        with reproducer(project) as again:
            for item in ready:
                found.append(again(item, _keeper(keep, item)))
                if not quiet:
                    show(screen, found[-1])
        # Inputs whose bytes were evicted had to be built before they could be read.
        back = [name for name, digest in gone.items() if not project.store.is_evicted(digest)]
        left = [item for item in _left_out(chosen) if item["target"] not in back]
        if quiet:
            targets = [it.to_dict() for it in found]
            screen.json({"format": 1, "targets": targets, "left_out": left, "written_again": back})
        else:
            _summary(screen, found, left, back)
        return int(any(it.broken for it in found))


def _empty_places(keep: Path, ready: Sequence[Planned]) -> Path:
    """The folder of ``--keep``, made now: what is wrong with it must not be found after hours of building."""
    there = [path for item in ready if os.path.lexists(path := keep / item.node.spec / item.node.name)]
    if there:
        raise UsageError("E-FILE", f"{there[0]} is there already, and nothing is replaced", hint="name another folder")
    if keep.exists() and not keep.is_dir():
        raise UsageError("E-FILE", f"{str(keep)!r} is not a folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _lacking(item: Planned) -> str:
    """Why a target cannot be compared with what comes out, and what helps."""
    name, state = item.node.id, item.state
    if state == "fresh":
        return f"{name} is accepted, not built: doit forget {name}, and doit {name} builds it"
    if state in ("evicted", "virtual"):
        return f"{name} is {state}: doit materialize {name} writes it"
    return f"{name} is {state}: doit {name} builds it"


def can_be_compared(item: Planned) -> bool:
    """Whether a result is in force that was built under this very key; what was accepted was built under another."""
    return item.state == "fresh" and item.receipt is not None and "accepted" not in item.receipt


@contextmanager
def reproducer(project: Project) -> Iterator[Callable[..., Reproduction]]:
    """What builds again in this project; a terminal hears on standard error what is being built."""
    from ingot.core.build import Builder
    from ingot.core.reproduction import Reproducer
    from ingot.kit.apart import apart

    # What came out is recorded: hours of building must not end with a log that cannot be written.
    project.require_recordable()
    said: set[str] = set()
    watched = sys.stderr.isatty()

    def hear(target: str, message: Mapping[str, Any]) -> None:
        if message["t"] == "waiting" and target not in said:
            said.add(target)
            sys.stderr.write(f"{_CLEAR * watched}{target} waits: {message['name']}\n")
        elif message["t"] == "phase" and watched:
            room = shutil.get_terminal_size().columns - 1
            sys.stderr.write(_CLEAR + f"{target}: {message['name']} …"[:room])
            sys.stderr.flush()

    builder = Builder(project, hear)
    again = Reproducer(project, builder, apart)

    def build(item: Planned, look: Callable[[Path], None] = lambda _folder: None) -> Reproduction:
        hear(item.node.id, {"t": "phase", "name": "build it again"})
        try:
            return again(item, look)
        finally:
            sys.stderr.write(_CLEAR * watched)

    try:
        yield build
    finally:
        builder.close()
        keep_derived(project)
        project.executor.close()


def _keeper(keep: Path | None, item: Planned) -> Any:
    """What copies a result that came out differently; nothing is kept of one that is the same."""
    from ingot.core.digest import record_files, tree_digest

    def look(folder: Path) -> None:
        if keep is not None and item.receipt and tree_digest(record_files(folder)) != item.receipt["digest"]:
            shutil.copytree(folder, keep / item.node.spec / item.node.name)

    return look


def _left_out(chosen: Sequence[Planned]) -> list[dict[str, str]]:
    """The targets that were not built again, with their state."""
    return [
        {"target": item.node.id, "state": "accepted" if item.state == "fresh" else item.state}
        for item in chosen
        if not can_be_compared(item)
    ]


def show(screen: Screen, found: Reproduction) -> None:
    """One target: whether the bytes are the same, and where not, how far apart each file is."""
    word = "same" if found.agrees else "DIFFERS" if found.broken else "differs"
    digests = found.digest[:12] if found.agrees else f"{found.digest[:12]} → {found.found[:12]}"
    promised = found.promised.replace("_", " ")
    screen.line(f"{word:<{_WIDTH}}{found.target}  {duration_text(found.wall_s)}  {digests}  ({promised})")
    for path, how in found.apart.items():
        screen.line(f"{'':<{_WIDTH}}  {path}: {_words(how)}")


def _words(how: Mapping[str, Any]) -> str:
    """How far apart two files are, in words."""
    what = str(how["what"])
    if what not in how:
        return {"missing": "did not come out again", "added": "was not there before"}.get(what, what)
    text = f"{how[what]:,} of {how['of']:,} {what} differ"
    if how.get("largest") is not None:
        text += f", by at most {how['largest']:.3g} ({how['where']})"
    if what != "bytes":
        relative = how.get("relative")
        text += ", not all of them numbers" if relative is None else f", relative {relative:.2g}"
        text += f" ({how['where']})" if what == "values" and how["where"] else ""
    return text


def _summary(
    screen: Screen, found: Sequence[Reproduction], left_out: Sequence[Mapping[str, str]], back: Sequence[str]
) -> None:
    same = sum(it.agrees for it in found)
    screen.line()
    screen.line(f"{number_text(same)} of {plural(len(found), 'target')} byte-equal; recorded in the log")
    states: dict[str, list[str]] = {}
    for item in left_out:
        states.setdefault(item["state"], []).append(item["target"])
    for state, names in states.items():
        screen.line(f"not built again ({state}): {', '.join(names)}")
    if back:
        screen.line(f"written again, since they were read: {', '.join(back)}")
    broken = [it.target for it in found if it.broken]
    if broken:
        screen.line(f"the kinds of {', '.join(broken)} promise the same bytes: this is a defect, or another machine")
