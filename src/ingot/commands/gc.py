"""``doit gc``: make room by taking out of the store what nothing needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_project, value
from ingot.commands.screen import Screen, plural, size_text
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.gc import Item, Policy, Sorted
    from ingot.core.project import Project

#: More artifacts than this are counted.
_SHOWN = 40


class Gc(IngotCommand):
    """Evict results that nothing speaks for."""

    name = "gc"
    doc_purpose = "take out of the store what nothing needs"
    doc_usage = "[--dry-run] [--newest N] [--days D] [--keep NAME,…] [--drop NAME,…] [--json]"
    doc_description = (
        "Kept are the results in force of all targets that the specs declare, the active and the last good ones and "
        "those that a rollback could go back to, the newest N results in the logs with what they were built from "
        "[default: 20], results of the last D days [default: 0], and what --keep names: specs, targets, or the "
        "beginning of a digest. --drop takes results although they are in force, or what the newest were built from: "
        "bytes of intermediate steps, say. Names of targets may be patterns with *. What goes stays known: nothing "
        "that was built from it becomes stale, and it is built again once something needs its bytes, or by doit "
        "materialize. While anything is built in the project nothing is taken away."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, 0)
    cmd_options = (
        JSON_OPTION,
        flag("dry-run", "say what would go, and take nothing away"),
        value("newest", "keep so many of the newest results in the logs"),
        value("days", "keep the results of the last days"),
        value("keep", "keep all results of these, separated by commas"),
        value("drop", "take the results of these although they are in force, separated by commas"),
    )

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:  # noqa: ARG002 - the protocol
        """0; 2 wrong use or a bad spec (what it needs is not known then); 6 while something is built; 7 disk."""
        from ingot.core.gc import collect, sort

        project = open_project()
        policy = _policy(project, options)
        found = sort(project, policy) if options["dry-run"] else collect(project, policy)
        keep_derived(project)
        if options["json"]:
            screen.json(_to_json(found, dry=bool(options["dry-run"])))
        else:
            _show(screen, found, policy, dry=bool(options["dry-run"]))
        return 0


def _policy(project: Project, options: Mapping[str, Any]) -> Policy:
    from ingot.core.gc import Policy

    newest, days = (_number(name, options[name], default) for name, default in (("newest", 20), ("days", 0)))
    keep, drop = (_names(project, name, options[name]) for name in ("keep", "drop"))
    return Policy(int(newest), days, keep, drop)


def _names(project: Project, option: str, text: str | None) -> tuple[str, ...]:
    """What is named, each of which means something: else what it was to keep would go unprotected."""
    from ingot import registry
    from ingot.core.gc import DIGITS
    from ingot.core.lookup import is_meant

    if text is None:
        return ()
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not names:
        raise UsageError("E-USAGE", f"--{option} names nothing: {text!r}", hint=f"--{option} NAME,NAME")
    known = project.nodes.keys() | project.index.latest.keys()
    for name in names:
        if any(is_meant(target, name) for target in known):
            continue
        if option == "keep" and len(name) >= DIGITS and set(name) <= set("0123456789abcdef"):
            if any(digest.startswith(name) for digest in project.store.objects()):
                continue
            what = f"no artifact in the store has a digest that begins with {name[:64]}"
            raise UsageError("E-DIGEST", what, hint="doit gc --dry-run --json lists what is there")
        raise registry.unknown_target(name, {*known, *(it.partition(":")[0] for it in known)})
    return names


def _number(name: str, text: str | None, default: float) -> float:
    whole = name == "newest"
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf or (whole and number != int(number)):
        raise UsageError("E-USAGE", f"--{name} takes a {'whole ' * whole}number from 0 on, not {text!r}")
    return number


def _to_json(found: Sorted, *, dry: bool) -> dict[str, Any]:
    lists = {name: [item.to_dict() for item in getattr(found, name)] for name in ("evicted", "dropped", "kept", "left")}
    return {"format": 1, "dry_run": dry, "freed_bytes": found.freed, **lists}


def _show(screen: Screen, found: Sorted, policy: Policy, *, dry: bool) -> None:
    gone = [*(("evict", item) for item in found.evicted), *(("drop", item) for item in found.dropped)]
    gone.sort(key=lambda pair: -pair[1].bytes)
    if gone:
        rows = [(word, size_text(item.bytes), item.digest[:12], _of(item)) for word, item in gone[:_SHOWN]]
        screen.table(("what", "size", "digest", "result of"), rows, right=(1,))
        screen.line(f"and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else "")
    would = "would free" if dry else "freed"
    kept = sum(item.bytes for item in found.kept)
    done = f"{would} {size_text(found.freed)} of {plural(len(gone), 'artifact')}" if gone else "nothing to take out"
    screen.line(f"{done}; {size_text(kept)} are kept")
    if found.newest:
        only = "only as the newest results, or what those were built from"
        screen.line(f"  {size_text(found.newest)} of them {only}: --newest 0 takes them too")
    for item, name in _spared(found, policy)[:_SHOWN]:
        others = [target for target in item.targets if target != name]
        of = f" of {name}{f', and of {others[0]},' if others else ''}"
        screen.text(f"  {item.digest[:12]}{of} stays although it was to be dropped: {', '.join(item.kept)}")
    if found.left:
        young = sum(item.bytes for item in found.left)
        screen.line(f"{plural(len(found.left), 'artifact')} ({size_text(young)}) named by no entry, left for a day")


def _spared(found: Sorted, policy: Policy) -> list[tuple[Item, str]]:
    """What ``--drop`` names and something else keeps, with the target that was named."""
    from ingot.core.lookup import is_meant

    return [
        (item, target)
        for item in found.kept
        for target in item.targets
        if any(is_meant(target, name) for name in policy.drop)
    ]


def _of(item: Item) -> str:
    return ", ".join(item.targets) or "no entry names it"
