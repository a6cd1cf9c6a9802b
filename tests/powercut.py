"""Real power cuts: a builder works on a file system in a file, is stopped, and the file is copied as the medium has it.

What the system holds in memory is not in the copy. Mounting the copy replays its journal, as after a power cut. The
journal is not written by time (``commit=``), so what is safe is what was synced.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import doitkit
from diskkit import made, mounted
from ingot.core.project import Project
from ingot.core.session import Session
from ingot.core.statement import receipt_of
from projectkit import Sandbox
from recordkit import audited, registry_of, simple, store_of

TARGETS = 12
SPECS = ("one", "two", "three")
#: After a power cut these are notes of what was not acknowledged.
_EXPECTED = ("unsigned_tail", "object_unnamed", "derived_unsealed")
#: Long before it the builder has ended.
_OPTIONS = "commit=600"


def prepared(place: Path) -> Sandbox:
    """A project with three specs of targets in rows of three, all of it safe."""
    sandbox = Sandbox.make(place)
    sandbox.home.mkdir()
    for word in SPECS:
        rows = (simple(f"t{n}", content=f"{word}x{n}", depends=f"t{n - 1}" if n % 3 else "") for n in range(TARGETS))
        sandbox.spec("targets:\n" + "".join(rows), word)
    subprocess.run(["sync", "-f", str(place)], check=True)
    return sandbox


def build(root: Path, environment: dict[str, str], said: Path, careless: bool) -> None:
    """Build everything, one spec after the other; say what was built. ``careless``: files are never synced."""
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with doitkit.prepared(), ExitStack() as stack:
        if careless:
            stack.enter_context(_careless())
        for word in SPECS:
            session = Session(Project.open(root))
            session.selected = tuple(f"{word}:t{number}" for number in range(TARGETS))
            for name in session.selected:
                if not session.up_to_date(name):
                    session.execute(name)
                receipt = session.outcomes[name].receipt
                os.write(descriptor, json.dumps([name, receipt["digest"]]).encode() + b"\n")
            session.close()


@contextmanager
def _careless() -> Iterator[None]:
    """Folders are synced and files are not."""
    real = os.fsync

    def only_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            real(descriptor)

    with mock.patch.object(os, "fsync", only_folders):
        yield


@dataclass(frozen=True)
class Cut:
    """One image of a medium, and what had been said when it was taken."""

    image: Path
    said: frozenset[tuple[str, str]]

    def broken_laws(self, place: Path) -> list[str]:
        """What is wrong with the project on this medium after the power is back."""
        with mounted(self.image, place, _OPTIONS):
            return found(Sandbox(place / "project", place / "home"), self.said)


def found(sandbox: Sandbox, said: frozenset[tuple[str, str]]) -> list[str]:
    """What breaks a promise: something acknowledged is lost, something half-made is published, the next run fails."""
    try:
        receipts = [receipt_of(it.statement) for it in registry_of(sandbox).entries() if it.type == "build"]
        logged = {(str(it["target"]), str(it["digest"])) for it in receipts}
        wrong = [f"lost: {name}" for name, _digest in sorted(said - logged)]
        audit = audited(sandbox)
        wrong += [f"audit: {it.code} {it.where}" for it in [*audit.problems, *audit.notes] if it.code not in _EXPECTED]
        with doitkit.prepared():
            code, text = doitkit.run(sandbox, *SPECS)
        wrong += [f"the next run: {code}: {text}"] * (code != 0)
        wrong += [f"audit afterwards: {it.code} {it.where}" for it in audited(sandbox).problems]
        return wrong + [f"half-made: {digest}" for digest in sorted(logged_but_not_whole(sandbox))]
    except Exception as error:  # noqa: BLE001 - whatever it is, no power cut may lead to it
        return [f"{type(error).__name__}: {error}"]


def logged_but_not_whole(sandbox: Sandbox) -> set[str]:
    """Digests in the log whose objects are not there and whole."""
    receipts = [receipt_of(it.statement) for it in registry_of(sandbox).entries() if it.type == "build"]
    store, named = store_of(sandbox), {str(it["digest"]): it["files"] for it in receipts}
    return {digest for digest, files in named.items() if store.presence(digest, files, reread=True)[0] != "present"}


def cuts(
    folder: Path, count: int, chance: random.Random, *, careless: bool = False, options: str = ""
) -> Iterator[Cut]:
    """Images of ``count`` power cuts at random moments of runs that begin on an empty disk."""
    taken = 0
    while taken < count:
        with mounted(made(folder / "medium", 24), folder / "mounted", f"{_OPTIONS}{options}") as place:
            sandbox = prepared(place)
            said = folder / f"said-{taken}"
            arguments = (sandbox.root, sandbox.env, said, careless)
            process = get_context("fork").Process(target=build, args=arguments)
            process.start()
            while taken < count and _stopped(process, said, chance):
                copy = folder / f"cut-{taken}"
                shutil.copyfile(folder / "medium", copy)
                yield Cut(copy, _said(said))
                copy.unlink()
                taken += 1
                os.kill(int(process.pid or 0), signal.SIGCONT)
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), "the builder failed by itself"


def _stopped(process: BaseProcess, said: Path, chance: random.Random) -> bool:
    """Let the builder finish a few targets more and stop it a moment later; False when it has ended."""
    enough = len(_said(said)) + chance.randint(1, 5)
    while process.exitcode is None and len(_said(said)) < enough:
        process.join(0.002)
    process.join(chance.uniform(0, 0.05))
    if process.exitcode is not None:
        return False
    os.kill(int(process.pid or 0), signal.SIGSTOP)
    while (state := _state(process)) not in "TZX":
        time.sleep(0.002)
    return state == "T"


def _state(process: BaseProcess) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def _said(path: Path) -> frozenset[tuple[str, str]]:
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return frozenset((name, digest) for name, digest in map(json.loads, whole.splitlines()))
