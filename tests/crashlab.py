"""Two whole publishes on a disk of one's own, and the laws that hold after any crash of them.

``Lab`` holds a project and its user's home in one folder, builds with a stage that writes small files in this
process, and verifies as a fresh process would: what was acknowledged is there and whole, ``audit`` finds nothing, the
next run completes, nothing that was never committed is signed, nothing is left behind and nothing precious lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from crashmodel import Event, Image, Tree
from crashrecord import Recorder, laid_out
from crashstage import Stage
from ingot.core import disk, filesystems, statement
from ingot.core.audit import Finding, audit
from ingot.core.log import encode_line, logs_in
from ingot.core.pins import StatePins, read_lock
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.core.staging import remove_tree
from ingot.core.store import Store
from projectkit import Sandbox
from recordkit import object_of, registry_of, store_of, writable

#: One line of a log and its place.
Acked = Callable[[tuple[str, int], bytes], None]

SPEC = """targets:
  a: {kind: command, command: [sh, -c, "echo one > {out}/out.txt"]}
  b: {kind: command, command: [sh, -c, "cat {data}/out.txt > {out}/out.txt"], from: {data: a}}
"""
#: A statement longer than this keeps its file list as evidence: that of ``b``, whose files have long names.
MAX_LINE = 2_800
TAIL = b'{"torn":'


@dataclass(frozen=True)
class Act:
    """Something that a command does, in this process. ``law`` is what holds of it after a crash, and ``again`` later.

    Plain functions of modules: they travel to other processes.
    """

    name: str
    do: Callable[[Lab, Acked], None]
    law: Callable[[Lab], list[str]]
    again: Callable[[Lab], list[str]]


@dataclass(frozen=True)
class Said:
    """What a crash must respect.

    ``acked``: the lines whose append returned, by their place. ``tried``: all lines that were ever handed to the log.
    ``precious``: bytes that must be found somewhere. ``broken``: digests of objects that were damaged before. ``act``:
    what was being done, if it was no build: the next command is the same one.
    """

    acked: Mapping[tuple[str, int], bytes] = field(default_factory=dict)
    tried: frozenset[bytes] = frozenset()
    precious: tuple[bytes, ...] = ()
    broken: frozenset[str] = frozenset()
    act: Act | None = None

    def after(self, events: Iterable[Event]) -> Said:
        """Also what these marks acknowledge; what was built anew is no longer excused."""
        new = dict(event.what for event in events if event.name == "acked")
        return replace(self, acked={**self.acked, **new}, broken=self.broken - built(new.values()))


def built(lines: Iterable[bytes]) -> set[str]:
    """The digests of the artifacts that these entries are the builds of."""
    entries = [json.loads(line) for line in lines]
    builds = [entry for entry in entries if entry["predicateType"] == statement.PROVENANCE]
    return {str(entry["subject"][0]["digest"][statement.TREE]) for entry in builds}


@contextmanager
def folder_in_memory(folder: Path) -> Iterator[Path]:
    """A folder in memory where there is such a thing, for thousands of small trees; else this one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield folder
        return
    made = memory / f"ingot-{os.getpid()}-{folder.name}"
    made.mkdir()
    try:
        yield made
    finally:
        remove_tree(made)


@contextmanager
def at_home(base: Path) -> Iterator[Lab]:
    """A lab in a folder, with this process's settings."""
    lab = Lab(base)
    home = {"XDG_CONFIG_HOME": str(base / "home" / "config"), "XDG_STATE_HOME": str(base / "home" / "state")}
    with mock.patch.dict(os.environ, home), mock.patch.object(statement, "MAX_LINE", MAX_LINE):
        yield lab
    remove_tree(base)


class Lab:
    """One disk: ``project/`` and ``home/`` below a folder."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.sandbox = Sandbox(base / "project", base / "home")

    @property
    def store(self) -> Store:
        """The store as a new process opens it: with the secret of the disk as it is now."""
        return store_of(self.sandbox)

    # --- what is done on it ----------------------------------------------------------------------------------

    def new(self) -> Said:
        """An empty project with the two targets."""
        self.lay_out({})
        Sandbox.make(self.base).spec(SPEC)
        (self.base / "home").mkdir()
        # Reading a spec costs more than all the rest; that its cache may be lost is tested where it is kept.
        Project.open(self.sandbox.root)
        return Said()

    def used(self, *, damaged: bool) -> Said:
        """A project that was built; then ``b`` was changed, and the object of ``a`` was damaged or a writer died."""
        self.new()
        acked: dict[tuple[str, int], bytes] = {}
        self.run(acked.__setitem__)
        self.sandbox.spec(SPEC.replace("cat ", "cat < "))
        Project.open(self.sandbox.root)
        said = Said(acked, frozenset(acked.values()))
        dead = self.sandbox.root / "cache" / "staging" / "00112233"
        (dead / "out").mkdir(parents=True)
        (dead / "out" / "half").write_bytes(b"half")
        dead.with_suffix(".lock").touch()
        if damaged:
            artifact = object_of(self.sandbox, "s:a")
            writable(artifact / "card").write_bytes(b"rotten")
            return replace(said, precious=(b"rotten",), broken=frozenset([artifact.name]))
        (log,) = logs_in(self.sandbox.root / "registry")
        log.lines_path.write_bytes(log.lines_path.read_bytes() + TAIL)
        (log.folder / ".checkpoint.tmp-00112233").write_bytes(b"half")
        return replace(said, precious=(TAIL,))

    def lay_out(self, image: Image) -> None:
        """A disk with this on it and nothing else."""
        assert remove_tree(self.base)
        self.base.mkdir(parents=True)
        laid_out(image, self.base)

    def session(self, acked: Acked) -> Session:
        """A new process's view of the project; tells of every entry whose ``record`` has returned."""
        project = self.opened(acked)
        session = Session(project)
        session.selected = tuple(project.nodes)
        return session

    def opened(self, acked: Acked) -> Project:
        """The project as a new process opens it; tells as ``session`` does."""
        disk._kept.clear()
        project = Project.open(self.sandbox.root)
        record_all = project.record_all

        def recording(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            places = record_all(entries)
            for place, entry in zip(places, entries, strict=True):
                acked((place["origin"], place["index"]), encode_line(entry))
            return places

        vars(project).update(executor=Stage(), record_all=recording, record=lambda entry: recording([entry])[0])
        return project

    def run(self, acked: Acked) -> Session:
        """What ``doit`` does."""
        session = self.session(acked)
        for name in session.project.nodes:
            if not session.up_to_date(name):
                session.execute(name)
        session.close()
        return session

    def record(self, tree: Tree | None = None, act: Act | None = None) -> Recorder:
        """Record a run, or what a command does, from the disk as it is; ``tree`` says what of it is not safe yet."""
        recorder = Recorder(self.base, tree)
        do = Lab.run if act is None else act.do
        with recorder.running():
            do(self, lambda place, line: recorder.mark("acked", (place, line)))
        return recorder

    def lines(self) -> list[bytes]:
        """All whole lines of all logs, signed or not."""
        return [line for log in logs_in(self.sandbox.root / "registry") for line in log.scan()]

    # --- the laws --------------------------------------------------------------------------------------------

    def broken_laws(self, said: Said) -> list[str]:
        """What is wrong with the disk as it is, found as a new process finds it; empty when all is well."""
        try:
            return [*self._at_first_sight(said), *self._afterwards(said)]
        except Exception as error:  # noqa: BLE001 - whatever it is, no crash may lead to it
            return [f"{type(error).__name__}: {error}"]

    def _at_first_sight(self, said: Said) -> list[str]:
        """Before anything is repaired: ``audit`` finds no problem, and nothing that an entry names is absent."""
        # What is derived is not synced: what a power cut left of it is known to be of no use.
        expected = ("unsigned_tail", "object_unnamed", "derived_unsealed")
        wrong = [it for it in self._audited(said) if it.code not in expected]
        # An object that is about to be evicted is made writable, so that it can be moved.
        wrong = [it for it in wrong if it.code != "artifact_unprotected" or not self._is_evicted(it)]
        found = [] if said.act is None else said.act.law(self)
        return [f"audit: {it.code} {it.where}: {it.detail}" for it in wrong] + self._kept(said) + found

    def _audited(self, said: Said) -> list[Finding]:
        """What an audit finds beside what was damaged before, and what is known to be evicted."""
        found = [it for it in self._audit() if not any(digest in it.where for digest in said.broken)]
        return [it for it in found if it.code != "artifact_absent" or not self._is_evicted(it)]

    def _is_evicted(self, found: Finding) -> bool:
        return self.store.is_evicted(found.where.split("/")[3])

    def _audit(self) -> list[Finding]:
        registry = registry_of(self.sandbox)
        origins = [log.origin for log in logs_in(self.sandbox.root / "registry")]
        found = audit(registry, self.store, origins, lambda _done, _total: None)
        return [*found.problems, *found.notes]

    def _kept(self, said: Said) -> list[str]:
        """What was acknowledged is signed, in its place, and pinned in both places; its object cannot be written to."""
        wrong = []
        logs = {log.origin: (log, list(log.scan())) for log in logs_in(self.sandbox.root / "registry")}
        pins = StatePins(self.base / "home" / "state" / "ingot" / "pins")
        lock = read_lock(self.sandbox.root / "ingot.lock")
        for (origin, index), line in said.acked.items():
            log, lines = logs.get(origin, (None, []))
            checkpoint = None if log is None else log.checkpoint()
            if checkpoint is None or checkpoint.size <= index or lines[index] != line:
                wrong.append(f"lost: entry {index} of {origin}")
            pin = pins.read(origin)
            if pin is None or pin[0].size <= index:
                wrong.append(f"not pinned in the user's state: entry {index}")
            if not any(pin.origin == origin and pin.size > index for pin in lock):
                wrong.append(f"not pinned in ingot.lock: entry {index}")
        objects = (built(said.acked.values()) - said.broken) & set(self.store.objects())
        loose = [digest for digest in objects if os.stat(self.store.object_path(digest)).st_mode & 0o222]
        loose = [digest for digest in loose if not self.store.is_evicted(digest)]
        return wrong + [f"writable: the object {digest[:12]}" for digest in loose]

    def _afterwards(self, said: Said) -> list[str]:
        """The next run completes, an append succeeds, and then all is as if nothing had happened."""
        new: list[bytes] = []
        wrong = []
        if said.act is not None:
            said.act.do(self, lambda _place, line: new.append(line))
            wrong += said.act.again(self)
        session = self.run(lambda _place, line: new.append(line))
        session.project.record(_selected(session.project, "s:a"))
        # The laboratory lies in memory where it can, and is told so.
        notices = set(session.project.registry.notices) - set(filesystems.warnings([self.sandbox.root / "cache"]))
        wrong += [f"notice: {text}" for text in sorted(notices)]
        wrong += [f"not fresh: {name}" for name in session.project.nodes if not session.up_to_date(name)]
        # An object in the place of a damaged one is whole, though its maker died before it was made read-only.
        wrong += [f"audit afterwards: {it.code} {it.where}: {it.detail}" for it in self._audited(said)]
        lines = self.lines()
        ours = said.tried | set(new)
        wrong += [f"signed: {it[:80]!r}" for it in lines if it not in ours and b'"urn:ingot:origin:1"' not in it]
        wrong += ["an entry is there twice"] * (len(set(lines)) != len(lines))
        logs = {log.origin for log in logs_in(self.sandbox.root / "registry")}
        wrong += ["another log was begun"] * bool(said.acked and logs != {place[0] for place in said.acked})
        return wrong + self._kept(said) + self._left_over() + self._lost(said)

    def _left_over(self) -> list[str]:
        root, home = self.sandbox.root, self.sandbox.home
        left = os.listdir(root / "cache" / "staging")
        places = [
            os.listdir(root),
            *(names for place in (root / "registry", home / "state") for *_, names in os.walk(place)),
        ]
        left += [name for names in places for name in names if ".tmp-" in name]
        left += [] if (root / "cache" / ".gitignore").read_bytes() == b"*\n" else [".gitignore"]
        return [f"left over: {name}" for name in left]

    def _lost(self, said: Said) -> list[str]:
        held: list[bytes] = []
        for folder, _folders, names in os.walk(self.base) if said.precious else ():
            held += [path.read_bytes() for name in names if not (path := Path(folder, name)).is_symlink()]
        return [f"bytes lost: {data!r}" for data in said.precious if not any(data in it for it in held)]


def _selected(project: Project, target: str) -> dict[str, Any]:
    """One more entry, of no consequence."""
    receipt = project.current[target]
    fields = {"target": target, "spec": "s", "key": receipt["key"], "digest": receipt["digest"]}
    return statement.decision_statement("selected", fields)
