"""What commands other than ``doit`` do on a disk, to be crashed at every step of it.

Each is a function of a ``Lab`` that does what the command does, in this process; ``prepared`` makes the project in
which it has something to do. The laws of the lab hold after any crash of it, and these: every artifact is whole or
known to be evicted; an export whose checkpoint is there holds all that it signs; the same command then completes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidCommand

from crashlab import SPEC, Acked, Act, Lab, Said
from ingot.commands.materialize import _written
from ingot.core.build import Builder
from ingot.core.gc import Policy, collect
from ingot.core.log import logs_in
from ingot.core.project import Project
from ingot.core.promotion import promote
from ingot.core.reproduction import Reproducer
from ingot.core.tiles import export, tiles

_VIRTUAL = """  adapter: {kind: command, command: [sh, -c, "echo adapter > {out}/out.txt"]}
  merged: {kind: merge, from: {model: a, adapter: adapter}, virtual: true}
"""
#: What ``gc`` drops although it is in force.
_DROPPED = ("s:a",)


def prepared(lab: Lab, act: Act) -> Said:
    """A project of two builds of ``b``, the first of which is in force no more, in which the command can be given."""
    lab.new()
    acked: dict[tuple[str, int], bytes] = {}
    lab.run(acked.__setitem__)
    lab.sandbox.spec(SPEC.replace("cat ", "cat < ") + _VIRTUAL * (act.name == "materialize a virtual target"))
    lab.run(acked.__setitem__)
    if act.name == "materialize evicted results":
        _gc(lab, acked.__setitem__)
    return replace(Said(acked, frozenset(acked.values())), act=act)


# --- what is done ----------------------------------------------------------------------------------------------------


def _gc(lab: Lab, acked: Acked) -> None:
    project = lab.opened(acked)
    collect(project, Policy(newest=0, drop=_DROPPED))
    project.save()


def _promote(lab: Lab, acked: Acked) -> None:
    project = lab.opened(acked)
    project.require_recordable()
    promote(project, list(project.nodes.values()), None, None)
    project.save()


def _materialize_evicted(lab: Lab, acked: Acked) -> None:
    _materialize(lab, acked, "s:a")


def _materialize_virtual(lab: Lab, acked: Acked) -> None:
    _materialize(lab, acked, "s:merged")


def _materialize(lab: Lab, acked: Acked, name: str) -> None:
    session = lab.session(acked)
    try:
        _written(session, name)
    except InvalidCommand as error:
        if "not virtual or evicted" not in str(error):
            raise
    for each in session.project.nodes:
        if not session.up_to_date(each):
            session.execute(each)
    session.close()


def _reproduce(lab: Lab, acked: Acked) -> None:
    project = lab.opened(acked)
    plan = project.plan(project.nodes.values())
    builder = Builder(project, lambda _target, _message: None)
    again = Reproducer(project, builder, _apart)
    for item in plan.values():
        if item.state == "fresh":
            assert again(item).agrees
    builder.close()
    project.save()


def _apart(_one: Path, _other: Path) -> Mapping[str, Any]:
    raise AssertionError("other bytes came out")


def _export(lab: Lab, acked: Acked) -> None:
    project = lab.opened(acked)
    with project.store.exclusive("export"):
        for log in logs_in(project.root / "registry"):
            export(log, lab.base / "export" / log.folder.name)


# --- what holds of it ------------------------------------------------------------------------------------------------


def _nothing(_lab: Lab) -> list[str]:
    return []


def _made_room(lab: Lab) -> list[str]:
    """After ``gc``: what it drops is gone, nothing lies half-way, no link dangles, no mark is beside an object."""
    cache = lab.sandbox.root / "cache"
    there = set(lab.store.objects())
    left = [path.name for place in ("trash", "evicted") for path in cache.glob(f"{place}/*")]
    wrong = [f"left over: {name}" for name in left if name in there or len(name) != 64]
    wrong += [f"dangling: {link}" for link in cache.glob("latest/*/*") if not link.exists()]
    return wrong + [f"not evicted: {len(there)} objects"] * (len(there) != 1)


def _materialized(lab: Lab) -> list[str]:
    project = Project.open(lab.sandbox.root)
    wanted = [node.id for node in project.nodes.values() if node.virtual] or list(_DROPPED)
    plan = project.plan(project.nodes.values())
    wrong = [f"not written: {name}" for name in wanted if plan[name].presence != "present"]
    return wrong + [f"no link: {name}" for name in wanted if not project.store.is_linked(*name.split(":"))]


def _promoted(lab: Lab) -> list[str]:
    entries = [line for line in lab.lines() if b'"urn:ingot:promote:1"' in line]
    count = len(Project.open(lab.sandbox.root).nodes)
    return [f"{len(entries)} promotions of {count} targets"] * (len(entries) != count)


def _whole_or_none(lab: Lab) -> list[str]:
    """Of an export with a checkpoint, what that signs is there: whoever reads it finds it."""
    wrong = []
    for log in logs_in(lab.sandbox.root / "registry"):
        folder = lab.base / "export" / log.folder.name
        if (folder / "checkpoint").exists():
            if (folder / "checkpoint").read_bytes() != log.signed_note():
                wrong.append("another checkpoint")
            size = log.checkpoint().size  # type: ignore[union-attr]
            for name, data in tiles(list(log.scan())[:size]):
                if not (folder / name).exists() or (folder / name).read_bytes() != data:
                    wrong.append(f"checkpoint without {name}")
    return wrong


def _exported(lab: Lab) -> list[str]:
    found = [name for *_, names in os.walk(lab.base / "export") for name in names]
    left = [f"left over: {name}" for name in found if ".tmp-" in name]
    return left + _whole_or_none(lab) + ["no checkpoint"] * ("checkpoint" not in found)


ACTS = (
    Act("gc", _gc, _nothing, _made_room),
    Act("promote", _promote, _nothing, _promoted),
    Act("materialize evicted results", _materialize_evicted, _nothing, _materialized),
    Act("materialize a virtual target", _materialize_virtual, _nothing, _materialized),
    Act("reproduce", _reproduce, _nothing, _nothing),
    Act("registry export", _export, _whole_or_none, _exported),
)
